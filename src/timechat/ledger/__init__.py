"""What people and clients write: labels today, in SQL. What a run writes are plain files (`store`).

`database` opens it, `tables` names its columns, `migrations` brings old ones up, `annotation` holds
the queue of things to judge. It imports neither torch nor fastapi.
"""
