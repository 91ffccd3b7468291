"""No address is served unless a test names an URLconf of its own."""

urlpatterns: list = []
