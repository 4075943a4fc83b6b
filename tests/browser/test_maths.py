"""What the page computes, held against NumPy and against the written-out rules."""

import base64

import numpy as np
import pytest

from tests.service import oracles

GRID = (3, 4)
L, C = 12, 5


@pytest.fixture
def call(page, service):
    """Call a function of one of the page's modules, arrays given as lists and back."""
    blank = "<link rel=icon href=data:,>"  # without one, a missing favicon is a complaint
    page.route("**/blank", lambda route: route.fulfill(content_type="text/html", body=blank))
    page.goto(str(service.base_url) + "/blank")

    def run(module: str, expression: str, argument=None):
        return page.evaluate(
            f"""async (x) => {{
                const m = await import("/static/{module}");
                const plain = (v) => ArrayBuffer.isView(v) ? Array.from(v) : v;
                return plain({expression});
            }}""",
            argument,
        )

    return run


def region_map(rng, invisible=()):
    features = rng.normal(size=(L, C)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    visible = [index not in invisible for index in range(L)]
    return features, visible


def in_page(name: str, source: str) -> str:
    """Give the expression that makes a region map of what was sent."""
    return (
        f"{{features: Float32Array.from(x.{source}.features), length: {C}, grid: [3, 4], "
        f"visible: x.{source}.visible}}"
    )


def test_half_precision_is_read_bit_for_bit(call):
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    text = base64.b64encode(numbers.tobytes()).decode()
    read = call("vectors.js", "[...m.decodeHalfs(x)].map(String)", text)
    np.testing.assert_array_equal(np.array(read, np.float32), numbers.astype(np.float32))


def test_rows_are_normalized_and_zero_stays_zero(call):
    rows = np.array([[3, 4, 0], [0, 0, 0]], np.float32)
    got = call("vectors.js", "m.normalizeRows(Float32Array.from(x), 3)", rows.ravel().tolist())
    np.testing.assert_allclose(got, [0.6, 0.8, 0, 0, 0, 0], rtol=1e-6)


def test_regions_in_the_border_are_not_visible(call):
    boxes = [[0, 0, 9, 0], [0, 0, 9, 4], [0, 4, 9, 12], [0, 12, 4, 20]]
    assert call("vectors.js", "m.visibleRegions(x)", boxes) == [False, True, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_matches_are_those_of_the_service(call, seed):
    rng = np.random.default_rng(seed)
    source, source_visible = region_map(rng, invisible=(0, 5))
    target, target_visible = region_map(rng, invisible=(11,))
    pair = {
        "a": {"features": source.ravel().tolist(), "visible": source_visible},
        "b": {"features": target.ravel().tolist(), "visible": target_visible},
    }
    expression = f"m.matchRegions({in_page('source', 'a')}, {in_page('target', 'b')})"
    got = call("vectors.js", expression, pair)
    wanted = oracles.correspond(source, target, source_visible, target_visible)
    assert [(m["source"], m["target"], m["mutual"]) for m in got] == [
        (query, best, mutual) for query, best, _, mutual in wanted
    ]
    np.testing.assert_allclose([m["score"] for m in got], [m[2] for m in wanted], atol=1e-6)


def test_selection_keeps_the_best_of_what_was_asked_for(call):
    scores = [0.1, 0.9, 0.5, 0.7]
    matches = [
        {"source": n, "target": n, "score": score, "mutual": n != 1}
        for n, score in enumerate(scores)
    ]

    def select(**options):
        options = {"topK": 9, "mutualOnly": False, "minScore": -1} | options
        chosen = call("vectors.js", "m.selectMatches(x.matches, x)", {"matches": matches} | options)
        return [match["source"] for match in chosen]

    assert select() == [1, 3, 2, 0]
    assert select(topK=2) == [1, 3]
    assert select(mutualOnly=True) == [3, 2, 0]
    assert select(minScore=0.5) == [1, 3, 2]


def test_neighbours_touch_also_at_corners_and_not_round_the_edge(call):
    near = call("vectors.js", "[...Array(12).keys()].filter((r) => m.areNeighbours(4, r, [3, 4]))")
    assert near == [0, 1, 4, 5, 8, 9]


def test_components_are_those_of_the_singular_value_decomposition(call):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(30, 8)) * [9, 6, 4, 2, 1, 1, 1, 1] + 5).astype(np.float32)
    got = call(
        "reduce.js",
        "(({projections, shares}) => ({projections: projections.map((p) => [...p]), shares}))"
        "(m.principalComponents(Float32Array.from(x), 8, 3))",
        rows.ravel().tolist(),
    )
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(got["shares"], (s**2 / (s**2).sum())[:3], rtol=1e-6)
    for n, projection in enumerate(got["projections"]):
        wanted = u[:, n] * s[n]
        wanted *= np.sign(wanted[np.abs(wanted).argmax()])
        np.testing.assert_allclose(projection, wanted, atol=1e-4 * s[n])


def test_equal_rows_have_no_components(call):
    got = call("reduce.js", "m.principalComponents(new Float32Array(12).fill(2), 3, 3).shares")
    assert got == [0, 0, 0]


def test_segments_part_what_lies_apart_and_repeat(call):
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 40)
    rows = (np.eye(3)[truth] * 10 + rng.normal(size=(40, 3))).astype(np.float32)
    expression = "m.kMeans(Float32Array.from(x), 3, 3)"
    got = np.array(call("reduce.js", expression, rows.ravel().tolist()))
    assert len(np.unique(got)) == 3
    for group in range(3):
        assert len(np.unique(truth[got == group])) == 1
    assert call("reduce.js", expression, rows.ravel().tolist()) == got.tolist()


def test_viridis_is_the_services(call):
    from service.attention import VIRIDIS

    np.testing.assert_array_equal(call("heat.js", "m.VIRIDIS"), VIRIDIS)
    np.testing.assert_allclose(call("heat.js", "m.viridis(0.5)"), VIRIDIS[4])
    between = (VIRIDIS[0] + VIRIDIS[1]) / 2
    np.testing.assert_allclose(call("heat.js", "m.viridis(1 / 16)"), between)


def test_smooth_maps_keep_each_cells_value_at_its_centre(call):
    values = np.random.default_rng(2).normal(size=GRID).astype(np.float32)
    got = call("heat.js", "m.upsample(x, [3, 4], 5)", values.ravel().tolist())
    smooth = np.reshape(got, (15, 20))
    np.testing.assert_allclose(smooth[2::5, 2::5], values, atol=1e-6)


def test_a_flat_map_stays_flat_when_it_is_smoothed(call):
    assert set(call("heat.js", "m.upsample(new Array(12).fill(3), [3, 4], 4)")) == {3}


def test_the_grid_lies_where_the_boxes_say_even_beyond_the_picture(call):
    full = [[10 * c, 20 * r, 10 * c + 10, 20 * r + 20] for r in range(3) for c in range(4)]
    view = call("pictures.js", "m.viewOf(x, [3, 4])", full)
    assert view == {"left": 0, "top": 0, "cellWidth": 10, "cellHeight": 20}
    cut = [[x0, max(y0 - 15, 0), x1, min(max(y1 - 15, 0), 30)] for x0, y0, x1, y1 in full]
    view = call("pictures.js", "m.viewOf(x, [3, 4])", cut)
    assert view == {"left": 0, "top": -15, "cellWidth": 10, "cellHeight": 20}
