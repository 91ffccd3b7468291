"""The example on a real PostgreSQL and under a real uvicorn, and the demo that it plays."""
