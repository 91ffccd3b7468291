"""What conn_guard costs and what it gives back: this room holds measurements that are run by hand,
none of them a test.
"""
