"""The object store: `ObjectStore` is the one door; front ends and tools know nothing else of what lies behind it."""

from couchestord.store.door import ObjectStore
from couchestord.store.handed import HandedOver
from couchestord.store.looks import Look
from couchestord.store.options import StoreOptions
from couchestord.store.reader import ObjectReader
from couchestord.store.store import Objects
from couchestord.store.waiting import Answered

__all__ = ["Answered", "HandedOver", "Look", "ObjectReader", "ObjectStore", "Objects", "StoreOptions"]
