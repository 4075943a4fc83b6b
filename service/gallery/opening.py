"""The store that the settings ask for, opened; who asks for none need not have Qdrant installed."""

from service.contract import ModelInfo
from service.errors import GalleryError
from service.gallery.gallery import Gallery
from service.gallery.store import Passport, Store
from service.settings import Settings

MISSING = "the gallery needs Qdrant's packages: pip install '.[gallery]'"


def open_gallery(settings: Settings, info: ModelInfo) -> Gallery | None:
    """Open the gallery, None where none is asked for.

    Raises:
        GalleryError: if it is another model's, in use, or cannot be reached.
    """
    if settings.gallery_path is None and settings.gallery_url is None:
        return None
    try:
        store = _open_store(settings, Passport.of(info))
    except ModuleNotFoundError as error:
        raise GalleryError(MISSING) from error
    return Gallery(
        store, info, max_pictures=settings.max_gallery_pictures, threads=settings.num_threads
    )


def _open_store(settings: Settings, passport: Passport) -> Store:
    """Open the folder or the server's collection."""
    if settings.gallery_path is not None:
        from service.gallery.edge import EdgeStore

        return EdgeStore(settings.gallery_path, passport)
    from qdrant_client import QdrantClient

    from service.gallery.server import ServerStore

    key = settings.gallery_api_key
    client = QdrantClient(
        url=settings.gallery_url,
        port=None,  # the address says it
        api_key=None if key is None else key.get_secret_value(),
        timeout=max(1, round(settings.deadline_s)),
        check_compatibility=False,  # it would warn on standard error, and `ServerStore` asks anyway
    )
    return ServerStore(client, settings.gallery_collection, passport)
