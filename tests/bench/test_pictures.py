"""Pictures and pages: that they are drawn, hold what they should, and load nothing from elsewhere."""

import re
from html.parser import HTMLParser

import made

from plimsoll.bench.formats import from_aiperf, to_aiperf
from plimsoll.bench.page import to_html
from plimsoll.bench.pictures import draw, predictions, save
from plimsoll.bench.records import to_level
from plimsoll.bench.report import bars


def plan(*concurrencies: int) -> dict:
    speeds = [
        {"concurrency": c, "tokens_per_s": {"low": 30 * c, "expected": 40 * c, "high": 50 * c}} for c in concurrencies
    ]
    return {"replicas": [{"speeds": speeds}]}


def test_every_picture_is_drawn_and_saved(tmp_path) -> None:
    figures = draw(made.record(1, 2, levels=(1, 2, 4), plan=plan(1, 2, 4)))
    assert list(figures) == ["speed", "latency", "cdf", "timeline"]
    for name, start in (("speed.png", b"\x89PNG"), ("cdf.svg", b"<?xml")):
        save(figures[name[:-4]], str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(start)


def test_the_plans_band_is_in_the_picture_of_speed() -> None:
    record = made.record(1, levels=(1, 4), plan=plan(1, 2, 4, 64))
    assert predictions(record)[1] == (2, 60.0, 80.0, 100.0)
    total, single = draw(record)["speed"].axes
    assert [line.get_label() for line in total.get_lines()] == ["planned", "measured"]
    planned = single.get_lines()[0]
    assert list(planned.get_xdata()) == [1, 2, 4]  # within what was measured
    assert list(planned.get_ydata()) == [40, 40, 40]
    assert len(draw(made.record(1, levels=(1, 4)))["speed"].axes[0].get_lines()) == 1


def test_figures_without_requests_have_the_pictures_that_they_can() -> None:
    record = from_aiperf(to_aiperf(made.record(1).levels[0]), concurrency=4)
    assert list(draw(record)) == ["speed"]


class Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_the_page_holds_everything_itself() -> None:
    record = made.record(1, levels=(1, 2), name="<a&b>", spec="models: []", hardware={"cpu": "some"})
    page = to_html(record)
    seen = Sources()
    seen.feed(page)
    assert seen.tags.count("svg") == 4
    assert "script" not in seen.tags
    assert all(link.startswith("#") for link in seen.links)
    assert not re.search(r"url\((?!#)", page)
    assert "&lt;a&amp;b&gt;" in page
    assert "models: []" in page


def test_bars_are_as_long_as_their_values() -> None:
    levels = [to_level(level) for level in made.record(1, levels=(1, 4)).levels]
    one, four = bars(levels, width=20)
    share = levels[0].summary.tokens_per_s / levels[1].summary.tokens_per_s
    assert four.count("█") == 20
    assert one.count("█") == int(20 * share + 0.0625)
