"""The error tree: every refusal has a class, every class a status and a stable code.

ServiceError                      500 internal
├── InvalidHttp                   400 invalid_http
├── InvalidJson                   400 invalid_json
├── InvalidMultipart              400 invalid_multipart
├── InvalidEncoding               400 invalid_encoding
├── Unauthorized                  401 unauthorized
├── NotThere                      404
│   ├── GalleryOff                404 gallery_off
│   └── UnknownPicture            404 unknown_picture
├── RequestTimeout                408 request_timeout
├── TooLarge                      413
│   ├── BodyTooLarge              413 body_too_large
│   ├── ImageTooLarge             413 image_too_large
│   ├── BatchTooLarge             413 batch_too_large
│   ├── AnswerTooLarge            413 answer_too_large
│   ├── GalleryFull               413 gallery_full
│   └── HeadTooLarge              431 head_too_large
├── UnsupportedMediaType          415 unsupported_media_type
│   └── UnsupportedImageFormat    415 unsupported_image_format
├── InvalidRequest                422 invalid_request
│   ├── InvalidBase64             422 invalid_base64
│   ├── UndecodableImage          422 undecodable_image
│   ├── PointOutOfBounds          422 region_out_of_bounds
│   ├── UrlsDisabled              422 urls_disabled
│   ├── UrlRefused                422 url_refused
│   └── UrlNotFetched             422 url_not_fetched
├── Overloaded                    429 overloaded, Retry-After
└── Unavailable                   503, Retry-After
    ├── Draining                  503 draining
    ├── GalleryUnavailable        503 gallery_unavailable
    ├── TooManyConnections        503 too_many_connections
    └── DeadlineExceeded          503 deadline_exceeded

`ModelError` and its child `GalleryError` stand apart: they stop the service at start and never
reach a client.
"""

from typing import Any, ClassVar


class ServiceError(Exception):
    """A refusal with its HTTP status and stable code.

    Attributes:
        message: What was wrong and what is expected, in one sentence; echoes nothing of the body.
        field: The part of the request that is at fault.
        index: Position of the image at fault, from 0.
        limit: The limit that was exceeded.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retry_after_s: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        index: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.index = index
        self.limit = limit

    def to_dict(self) -> dict[str, Any]:
        """Give the error's body; keys without a value are left out."""
        optional = {"field": self.field, "index": self.index, "limit": self.limit}
        return {"code": self.code, "message": self.message} | {
            key: value for key, value in optional.items() if value is not None
        }


class InvalidHttp(ServiceError):
    """Bytes that are no HTTP request."""

    status, code = 400, "invalid_http"


class InvalidJson(ServiceError):
    """The body is not a JSON object."""

    status, code = 400, "invalid_json"


class InvalidMultipart(ServiceError):
    """The body is not the form that its content type says."""

    status, code = 400, "invalid_multipart"


class InvalidEncoding(ServiceError):
    """A body that is not compressed as it says."""

    status, code = 400, "invalid_encoding"


class Unauthorized(ServiceError):
    """A call without one of the API keys."""

    status, code = 401, "unauthorized"


class NotThere(ServiceError):
    """Something that is asked for by name and is not there."""

    status, code = 404, "not_found"


class GalleryOff(NotThere):
    """A call of the gallery where there is none."""

    code = "gallery_off"


class UnknownPicture(NotThere):
    """An id that the gallery does not have."""

    code = "unknown_picture"


class RequestTimeout(ServiceError):
    """Head or body did not arrive in time."""

    status, code = 408, "request_timeout"


class TooLarge(ServiceError):
    """Something exceeds a stated limit."""

    status, code = 413, "too_large"


class BodyTooLarge(TooLarge):
    """More bytes than `max_body_bytes`."""

    code = "body_too_large"


class ImageTooLarge(TooLarge):
    """More pixels, frames or memory than an image may have, or a shape beyond the aspect."""

    code = "image_too_large"


class BatchTooLarge(TooLarge):
    """More images in one request than `max_images`."""

    code = "batch_too_large"


class AnswerTooLarge(TooLarge):
    """More numbers in one answer than `max_answer_numbers`."""

    code = "answer_too_large"


class GalleryFull(TooLarge):
    """More pictures than `max_gallery_pictures`."""

    code = "gallery_full"


class HeadTooLarge(TooLarge):
    """More bytes before the body than `max_header_bytes`."""

    status, code = 431, "head_too_large"


class UnsupportedMediaType(ServiceError):
    """A content type that no endpoint reads."""

    status, code = 415, "unsupported_media_type"


class UnsupportedImageFormat(UnsupportedMediaType):
    """An image in a format that is not on the allow-list."""

    code = "unsupported_image_format"


class InvalidRequest(ServiceError):
    """Understood, but not acceptable."""

    status, code = 422, "invalid_request"


class InvalidBase64(InvalidRequest):
    """Text that should be base64 and is not."""

    code = "invalid_base64"


class UndecodableImage(InvalidRequest):
    """Bytes that are no readable image."""

    code = "undecodable_image"


class PointOutOfBounds(InvalidRequest):
    """A point outside what the model sees of the picture."""

    code = "region_out_of_bounds"


class UrlsDisabled(InvalidRequest):
    """An image given by address, which this service does not fetch."""

    code = "urls_disabled"


class UrlRefused(InvalidRequest):
    """An address that this service does not go to."""

    code = "url_refused"


class UrlNotFetched(InvalidRequest):
    """An address that gave no image."""

    code = "url_not_fetched"


class Overloaded(ServiceError):
    """The queue is full."""

    status, code, retry_after_s = 429, "overloaded", 1


class Unavailable(ServiceError):
    """The service cannot answer now."""

    status, code, retry_after_s = 503, "unavailable", 1


class Draining(Unavailable):
    """Shutting down."""

    code = "draining"


class GalleryUnavailable(Unavailable):
    """The gallery's server does not answer."""

    code = "gallery_unavailable"


class TooManyConnections(Unavailable):
    """More connections than `max_connections`."""

    code = "too_many_connections"


class DeadlineExceeded(Unavailable):
    """The answer would have come too late."""

    code = "deadline_exceeded"


class ModelError(Exception):
    """The model file or the engine asked for cannot be used; the message says what to do."""


class GalleryError(ModelError):
    """The gallery asked for cannot be used with the model; the message says what to do."""
