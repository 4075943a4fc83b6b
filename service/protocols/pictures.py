"""How foreign clients write a picture, as our own endpoints take it."""

from typing import Any

from service.addresses import Source
from service.errors import InvalidBase64, InvalidRequest, ServiceError
from service.inputs import read_sources

PICTURES_ONLY = "this model embeds pictures only, and this is neither a data URI nor base64"


def read_pictures(items: list[Any], field: str, max_images: int) -> list[Source]:
    """Take the images of a foreign call; one that is bad fails the call.

    Args:
        items: Pictures as `as_source` knows them.
        field: What the call names the list.
        max_images: How many there may be.

    Raises:
        ServiceError: naming the first picture at fault, or that there are none or too many.
    """
    sources = []
    for index, item in enumerate(items[: max_images + 1]):
        try:
            sources.append(as_source(item))
        except InvalidRequest as error:
            error.field = f"{field}[{index}]"
            raise
    pictures: list[Source] = []
    for index, picture in enumerate(read_sources(sources, max_images)):
        if isinstance(picture, InvalidBase64) and "base64" in sources[index]:
            picture.message = PICTURES_ONLY
        if isinstance(picture, ServiceError):
            picture.field = f"{field}[{index}]"
            raise picture
        pictures.append(picture)
    return pictures


def as_source(item: object) -> dict[str, Any]:
    """Give one picture as `{"base64"}`, `{"data_uri"}` or `{"url"}`, whatever wrapped it.

    Known are the bare text of a data URI, of base64 or of an address; `{"image": ...}`,
    `{"bytes": ...}` and `{"url": ...}` round it; and `{"type": "image_url", "image_url": ...}`.

    Raises:
        InvalidRequest: if it is a text or nothing known.
    """
    while isinstance(item, dict):
        if "text" in item or item.get("type") == "text":
            raise InvalidRequest("this model embeds pictures only, no texts")
        inner = [item[key] for key in ("image", "bytes", "image_url", "url") if key in item]
        if len(inner) != 1:
            raise InvalidRequest(
                'a picture is a data URI, base64, {"image": ...} or '
                '{"type": "image_url", "image_url": {"url": ...}}'
            )
        (item,) = inner
    if not isinstance(item, str):
        raise InvalidRequest(PICTURES_ONLY)
    if item.startswith("data:"):
        return {"data_uri": item}
    return {"url": item} if item.startswith(("http://", "https://")) else {"base64": item}
