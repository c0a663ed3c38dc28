import cv2
import numpy as np
import pytest

from opam.evaluation.metrics import box_iou
from opam.method.proposals import ProposalParams, propose, selective_search, whole_and_quarters
from opam.pipeline.errors import OpamError

PLANTED = (40, 30, 90, 80)


def planted(height: int = 110, width: int = 150, scale: int = 1) -> np.ndarray:
    """One bright rectangle on a dark ground, a little noise on both."""
    rng = np.random.default_rng(0)
    image = np.full((height * scale, width * scale, 3), 40, dtype=np.uint8)
    x0, y0, x1, y1 = (side * scale for side in PLANTED)
    image[y0:y1, x0:x1] = (200, 120, 60)
    return image + rng.integers(0, 6, image.shape, dtype=np.uint8)


def blocks(seed: int = 0) -> np.ndarray:
    """Random coloured blocks: many regions."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (120, 90), interpolation=cv2.INTER_NEAREST)


def best_iou(boxes: np.ndarray, box: tuple[int, ...]) -> float:
    return float(box_iou(boxes, np.tile(box, (len(boxes), 1))).max())


@pytest.mark.parametrize("mode", ["fast", "quality", "single"])
def test_boxes_are_distinct_large_enough_inside_and_sorted(mode: str) -> None:
    image = blocks()
    boxes = selective_search(image, mode=mode, min_side=15)
    assert boxes.dtype == np.int32
    assert boxes.shape[1:] == (4,)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert len(boxes) > 3
    assert sides.min() >= 15
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [120, 90]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    keys = [(-(x1 - x0) * (y1 - y0), x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()]
    assert keys == sorted(keys)


def test_the_same_photograph_gives_the_same_boxes_whatever_was_searched_before() -> None:
    first = selective_search(blocks())
    selective_search(blocks(1))
    np.testing.assert_array_equal(first, selective_search(blocks()))


@pytest.mark.filterwarnings("ignore:Applying `local_binary_pattern`")
@pytest.mark.parametrize("engine", ["opencv", "selectivesearch"])
def test_a_planted_object_is_found(engine: str) -> None:
    assert best_iou(selective_search(planted(), engine=engine), PLANTED) > 0.8


def test_a_cap_keeps_all_sizes() -> None:
    every = selective_search(blocks(), max_boxes=10_000)
    few = selective_search(blocks(), max_boxes=10)
    assert len(few) == 10 < len(every)
    ranks = [int(np.flatnonzero((every == box).all(1))[0]) for box in few]
    assert ranks == sorted(set(ranks))
    assert ranks[0] == 0
    assert max(np.diff([*ranks, len(every)])) <= np.ceil(len(every) / 10)


def test_boxes_are_in_pixels_of_the_photograph_not_of_the_searched_image() -> None:
    boxes = propose(planted(scale=3), ProposalParams(max_side=150))
    assert best_iou(boxes, tuple(3 * side for side in PLANTED)) > 0.8
    assert (boxes[:, 2:] <= [450, 330]).all()


@pytest.mark.filterwarnings("ignore:Applying `local_binary_pattern`")
@pytest.mark.parametrize("engine", ["opencv", "selectivesearch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3, 900), (900, 20), (60, 80)])
def test_no_photograph_is_left_without_boxes(engine: str, shape: tuple[int, int]) -> None:
    height, width = shape
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    for image in (noise, np.zeros_like(noise)):
        boxes = propose(image, ProposalParams(engine=engine, max_side=128))
        assert len(boxes) > 0
        assert boxes.dtype == np.int32
        assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= [width, height]).all()


def test_where_the_search_finds_nothing_whole_and_quarters_stand_in() -> None:
    boxes = propose(np.zeros((60, 80, 3), dtype=np.uint8), ProposalParams(min_side=100))
    np.testing.assert_array_equal(boxes, whole_and_quarters(60, 80))
    assert boxes.tolist()[0] == [0, 0, 80, 60]
    cover = np.zeros((60, 80), dtype=int)
    for x0, y0, x1, y1 in boxes[1:]:
        cover[y0:y1, x0:x1] += 1
    assert (cover == 1).all()


@pytest.mark.parametrize(
    "wrong", [{"engine": "dlib"}, {"mode": "slow"}, {"max_side": 0}, {"max_boxes": 0}, {"k": 50}]
)
def test_parameters_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProposalParams(**wrong)


def test_an_unknown_engine_or_mode_is_refused() -> None:
    with pytest.raises(OpamError, match=r"proposals\.engine: unknown 'dlib'"):
        selective_search(blocks(), engine="dlib")
    with pytest.raises(OpamError, match=r"proposals\.mode: unknown 'slow'"):
        selective_search(blocks(), mode="slow")
