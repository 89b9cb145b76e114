"""What is done in blocks and threads is what is done at once."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sdf_vqvae.utils.threads import by_rows, in_threads


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_every_number_of_a_range_is_worked_on_once_and_in_order(count: int, threads: int) -> None:
    inside: set[int] = set()

    def work(start: int, stop: int) -> list[int]:
        inside.add(torch.get_num_threads())
        return list(range(start, stop))

    done = in_threads(work, count, calls_torch=True)
    assert [n for part in done for n in part] == list(range(count))
    assert inside == ({1} if count > 2 * threads else {threads})
    assert torch.get_num_threads() == threads


def test_threads_to_come_use_as_many_threads_as_before(threads: int) -> None:
    in_threads(lambda start, stop: None, 100, calls_torch=True)
    torch.set_num_threads(1)
    assert in_threads(lambda start, stop: torch.get_num_threads(), 1) == [1]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("count", [1, 64, 65, 1000])
def test_rows_in_blocks_are_the_rows_at_once(count: int, mode: type) -> None:
    layer = nn.Linear(6, 5)
    feats, more = torch.randn(count, 6), torch.randn(count, 5)
    with mode():
        out = by_rows(lambda a, b: layer(a) + b, feats, more, width=1 << 12)  # blocks of 64 rows
        torch.testing.assert_close(out, layer(feats) + more)
        assert out.requires_grad == (mode is torch.enable_grad)
        assert out.is_inference() == (mode is torch.inference_mode)


def test_rows_under_autocast_keep_its_type() -> None:
    layer = nn.Linear(6, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert by_rows(layer, torch.randn(1000, 6), width=1 << 12).dtype == torch.bfloat16
