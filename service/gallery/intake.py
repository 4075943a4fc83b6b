"""A request's images into the gallery: what is there is neither computed nor kept again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.contract import Output
from service.errors import ServiceError
from service.gallery.gallery import File, Gallery
from service.gallery.schemas import IndexOptions
from service.gallery.store import About, Picture
from service.inputs import Inputs
from service.pipeline import Pipeline
from service.tickets import Inferred, Result

OUTPUTS: list[Output] = ["embedding", "regions"]
"""What is computed of a picture."""


class Indexed(NamedTuple):
    """What became of an image: the picture, and whether it was there before."""

    picture: Picture
    is_known: bool


class Taken(NamedTuple):
    """What became of a request's images, and what was wrong with the bad ones."""

    images: list[Indexed | None]
    errors: list[dict[str, Any]]


async def take_in(
    pipeline: Pipeline, gallery: Gallery, inputs: Inputs, options: IndexOptions
) -> Taken:
    """Put images into the gallery.

    Args:
        pipeline: Computes them.
        gallery: Where they go.
        inputs: The images, and what their files are called.
        options: How; its names, if there are any, are as many as the images.

    Raises:
        ServiceError: where the request as a whole cannot be answered; then nothing was put.
    """
    async with pipeline.fetched(inputs.images) as sources:
        files = await gallery.identify(sources)
        known = await gallery.known(sorted({file.id for file in files if file}))
        names = options.names or inputs.file_names
        renamed = _renamed(files, known, names, is_asked=options.names is not None)
        known |= renamed
        there = {id: picture for id, picture in known.items() if picture.about.fit == options.fit}
        fresh = _first_places(files, there)
        wanted = [sources[place] for place in fresh.values()]
        results: list[Result] = []
        if wanted:
            results = await pipeline.infer(wanted, OUTPUTS, options.fit, keep="thumbnail")
    inferred = dict(zip(fresh, results, strict=True))
    made = {
        id: _picture(files[place], _name(known.get(id), names[place]), inferred[id], options)
        for id, place in fresh.items()
    }
    outcomes = [
        _outcome(source, file, there, made) for source, file in zip(sources, files, strict=True)
    ]
    errors = pipeline.refusals(outcomes, must_succeed=options.on_error == "fail")
    await gallery.rename({id: item.about.name for id, item in renamed.items() if id in there})
    await gallery.put(
        [
            (picture, result)
            for picture, result in zip(made.values(), results, strict=True)
            if isinstance(picture, Picture) and isinstance(result, Inferred)
        ]
    )
    return Taken([item if isinstance(item, Indexed) else None for item in outcomes], errors)


def _renamed(
    files: Sequence[File | None], known: dict[str, Picture], names: Sequence[str], *, is_asked: bool
) -> dict[str, Picture]:
    """Give the known pictures that are called something else from now on.

    Args:
        files: Of the request; of equal ones the first counts.
        known: Those that are in the gallery.
        names: What the files are called.
        is_asked: Whether these names were given for the gallery; else they only fill empty ones.
    """
    renamed: dict[str, Picture] = {}
    for file, name in zip(files, names, strict=True):
        if file is None or file.id in renamed or file.id not in known:
            continue
        picture = known[file.id]
        if name != picture.about.name and (is_asked or not picture.about.name):
            renamed[file.id] = picture._replace(about=picture.about._replace(name=name))
    return renamed


def _first_places(files: Sequence[File | None], there: dict[str, Picture]) -> dict[str, int]:
    """Give what is to be computed: ids, each with the place of its first file."""
    places: dict[str, int] = {}
    for place, file in enumerate(files):
        if file is not None and file.id not in there:
            places.setdefault(file.id, place)
    return places


def _name(known: Picture | None, name: str) -> str:
    """Give what a computed picture is called: one of another `fit` keeps its name."""
    return known.about.name if known else name


def _picture(
    file: File | None, name: str, result: Result, options: IndexOptions
) -> Picture | ServiceError:
    """Give the picture that a file becomes, or why it becomes none."""
    if isinstance(result, ServiceError):
        return result
    assert file is not None
    geometry = result.prepared.geometry
    about = About(name, geometry.width, geometry.height, options.fit, file.sha256)
    return Picture(file.id, about)


def _outcome(
    source: bytes | ServiceError,
    file: File | None,
    there: dict[str, Picture],
    made: dict[str, Picture | ServiceError],
) -> Indexed | ServiceError:
    """Say what became of one image."""
    if file is None:
        assert isinstance(source, ServiceError)
        return source
    if file.id in there:
        return Indexed(there[file.id], is_known=True)
    picture = made[file.id]
    return picture if isinstance(picture, ServiceError) else Indexed(picture, is_known=False)
