"""
The bus: subscriptions, snapshots and the journal behind three endpoints.
"""
