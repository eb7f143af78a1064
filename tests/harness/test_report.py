"""The report: whole and escaped text, sortable markup, nothing from elsewhere; a browser's word for it."""

import csv
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from harness import report
from harness.report.markup import element, escape
from harness.report.scatter import Point, front, scatter
from harness.verify import verify

EXPORTS = ("md", "csv", "tex")
HOSTILE = "<img src=x onerror=alert(1)>\"'</script></style>&\u202e"


class Reader(HTMLParser):
    """Every tag with its attributes, the text of each popover, and what was opened but not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(made):
    return report.write(made.results).read_text()


def test_every_number_opens_what_it_came_from(make_results):
    text = page_of(make_results())
    reader = Reader(text)
    assert reader.open == []
    targets = {tag["popovertarget"] for tag in reader.all("button") if "popovertarget" in tag}
    popovers = [tag["id"] for tag in reader.all("div") if "popover" in tag]
    assert targets == set(popovers)
    assert len(popovers) == len(set(popovers)) > 100
    for fact in ("config hash", "checkpoint hash", "data hash", "commit", "hardware", "seed", "count"):
        assert text.count(f"<dt>{fact}</dt>") == len(popovers)


def test_a_number_of_several_seeds_shows_its_spread_and_leads_to_each_of_them(make_results):
    made = make_results(seeds=(3, 5))
    text = page_of(made)
    reader = Reader(text)
    targets = {tag["popovertarget"] for tag in reader.all("button") if "popovertarget" in tag}
    assert targets == {tag["id"] for tag in reader.all("div") if "popover" in tag}
    assert re.search(r">25\.90</b><span class=\"stderr\"> ± 0\.71 \(n=2\)</span>", text)
    board = json.loads((made.results / "generation" / "leaderboard.json").read_text())
    metric = next(row for row in board["rows"] if row["encoder"] == "ov3-demo")["metrics"]["PSNR"]
    for name in metric["result_files"]:
        start = text.index(f"<dt>result file</dt><dd><code>{name}</code>")
        facts = text[text.rindex("<dl>", 0, start) : start]
        assert "<dt>mean of 2 seeds</dt><dd>25.9 dB</dd>" in facts
        assert f"<dt>standard deviation</dt><dd>{metric['std']!r} dB</dd>" in facts
        assert "seed 3: 25.4 dB" in facts and "seed 5: 26.4 dB" in facts
    assert verify(made.results).faults == []
    markdown, table, latex = ((made.results / f"generation/leaderboard.{end}").read_text() for end in EXPORTS)
    assert "25.90 ± 0.71 (n=2)" in markdown
    assert r"25.90 $\pm$ 0.71 (n=2)" in latex
    lines = list(csv.DictReader(io.StringIO(table)))
    line = next(line for line in lines if line["encoder"] == "ov3-demo")
    assert (float(line["PSNR"]), float(line["PSNR std"]), line["PSNR seeds"]) == (25.9, metric["std"], "2")


def test_tables_carry_what_sorting_needs(make_results):
    reader = Reader(page_of(make_results()))
    headings = [tag for tag in reader.all("th") if tag.get("scope") == "col"]
    assert headings
    assert all(tag["aria-sort"] == "none" for tag in headings)
    values = [float(tag["data-value"]) for tag in reader.all("td") if "data-value" in tag]
    assert 25.4 in values
    assert all(tag.get("tabindex") == "0" for tag in reader.all("div") if tag.get("class") == "scroll")


def test_best_is_bold_among_measured_rows_and_controls_are_marked(make_results):
    text = page_of(make_results())
    assert '<b title="best measured">25.40</b>' in text  # PSNR of the better encoder
    assert '<b title="best measured">20.32</b>' not in text
    assert '<b title="best measured">1.90</b>' not in text  # the floor wins nothing
    assert re.search(r'real vs real <span class="mark floor"', text)
    assert re.search(r'blind <span class="mark blind"', text)
    assert 'aria-label="lower is better"' in text


def test_what_was_not_run_says_why_once_for_neighbours(make_results):
    text = page_of(make_results())
    reason = "the two sets hold different pictures"
    assert f'<td colspan="3" class="missing"><span title="{reason}">not run: {reason}</span></td>' in text


def test_published_rows_stand_apart_with_links_to_their_papers(make_results):
    text = page_of(make_results())
    apart = re.findall(r'<section class="published">.*?</section>', text, flags=re.DOTALL)
    assert len(apart) == 2
    assert all('href="https://arxiv.org/abs/2601.15369v2"' in part for part in apart)
    assert not any("ov3-demo" in part or "popovertarget" in part for part in apart)


def test_nothing_comes_from_elsewhere(make_results):
    text = page_of(make_results())
    for tag, attributes in Reader(text).tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if source := attributes.get("src"):
            assert source.startswith("data:image/")
        if link := attributes.get("href"):
            assert link.startswith(("#", "data:,")) or (tag == "a" and "arxiv.org" in link)
    assert "@import" not in text
    assert "url(" not in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_hostile_text_stays_text(make_results):
    made = make_results(encoders={"ov3-demo": 1.0, HOSTILE: 0.8}, question=HOSTILE)
    text = page_of(made)
    reader = Reader(text)
    assert reader.open == []
    assert all(tag.get("src", "").startswith("data:") for tag in reader.all("img") if "src" in tag)
    assert text.count("<script>") == text.count("</script>") == 1
    assert "\u202e" not in text
    shown = html.escape(HOSTILE[:-1])
    assert text.count(shown) > 10  # in tables, popovers, the scatter and the answers


def test_answers_are_shown_with_their_pictures_by_who_was_right(make_results):
    text = page_of(make_results())
    assert "scenes_seed: right: ov3-demo, clip-demo (5 of 6)" in text
    assert "scenes_seed: right: ov3-demo (1 of 6)" in text
    cards = re.findall(r"<article>.*?</article>", text, flags=re.DOTALL)
    assert len(cards) == 4
    assert all(
        '<img src="data:image/png;base64,' in card and "What is on the left?" in card for card in cards
    )
    assert '<li class="due">a g boat</li>' in cards[0]
    assert 'aria-label="wrong">✗</span> blind: <q>B. blind</q>' in cards[0]


def test_without_the_runs_folder_the_report_still_has_every_table(make_results):
    made = make_results()
    whole = page_of(made)
    shutil.rmtree(made.runs)
    bare = page_of(made)
    assert "<article>" not in bare
    assert bare.count("popover ") == whole.count("popover ") > 100


def test_the_same_results_give_the_same_bytes(make_results):
    made = make_results()
    assert page_of(made) == page_of(made)


def test_a_figure_that_is_no_picture_is_said_not_shown(make_results):
    made = make_results()
    (made.results / "generation" / "samples.png").write_text("<svg onload=alert(1)>")
    assert "samples.png is no picture that can be shown" in page_of(made)


def metric(value, higher_is_better):
    return {"value": value, "stderr": 0.5, "unit": "%", "higher_is_better": higher_is_better}


def point(name, x, y):
    return Point(name=name, x=metric(x, True), y=metric(y, False))


def test_the_front_holds_whom_no_other_beats_in_both():
    points = [point("good", 80, 10), point("sharp", 70, 5), point("beaten", 69, 6), point("also", 80, 11)]
    assert [kept.name for kept in front(points)] == ["sharp", "good"]


def test_better_is_up_and_to_the_right_whichever_way_a_measure_counts():
    drawn = scatter([point("good", 80, 10), point("bad", 60, 20)], "S", "FD", x_lines=[], y_lines=[])
    (x_good, y_good), (x_bad, y_bad) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert float(x_good) > float(x_bad)
    assert float(y_good) < float(y_bad)


def test_one_encoder_alone_can_be_drawn():
    lone = Point(name="one", x=metric(0.0, True) | {"stderr": None}, y=metric(0.0, False) | {"stderr": None})
    assert "<circle" in scatter([lone], "S", "FD", x_lines=[], y_lines=[])


def test_only_markup_passes_unescaped():
    assert element("p", "<b>", element("b", "x"), None, title='"', hidden=True, id=None) == (
        '<p title="&quot;" hidden>&lt;b&gt;<b>x</b></p>'
    )
    assert escape("a\x00\u202eb") == "a��b"


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driver
    driver.quit()


def column(browser, index):
    rows = "[...document.querySelector('#generation table').tBodies[0].rows]"
    return browser.execute_script(f"return {rows}.map(row => row.cells[{index}].innerText)")


def test_in_a_browser_tables_sort_pictures_load_and_nothing_complains(browser, make_results):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    path = report.write(make_results().results)
    browser.set_window_size(1200, 900)
    browser.get(path.as_uri())
    pictures = "return [...document.images].map(i => [i.src, i.complete && i.naturalWidth])"
    loaded = [width for source, width in browser.execute_script(pictures) if source]
    assert len(loaded) >= 6
    assert all(loaded)

    table = browser.find_element(By.CSS_SELECTOR, "#generation table")
    heading = table.find_elements(By.CSS_SELECTOR, "thead th")[2]  # PSNR
    heading.find_element(By.TAG_NAME, "button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(browser, 0)[:2] == ["ov3-demo", "clip-demo"]
    heading.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)  # by keyboard, the other way
    assert heading.get_attribute("aria-sort") == "ascending"
    names = column(browser, 0)
    assert names[:2] == ["clip-demo", "ov3-demo"]
    assert sorted(names[2:]) == ["blind no pictures", "real vs real floor"]  # last, either way

    number = table.find_element(By.CSS_SELECTOR, "td button")
    number.send_keys(Keys.ENTER)
    popover = browser.find_element(By.ID, number.get_attribute("popovertarget"))
    assert popover.is_displayed()
    assert "config hash" in popover.text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not popover.is_displayed()

    browser.find_element(By.CSS_SELECTOR, "button.zoom").send_keys(Keys.ENTER)
    viewer = browser.find_element(By.ID, "viewer")
    assert viewer.is_displayed()
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not viewer.is_displayed()

    browser.set_window_size(500, 800)  # the narrowest that a headless window takes
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) <= 0
    assert browser.get_log("browser") == []


def test_in_a_browser_each_seed_of_a_number_is_a_click_further(browser, make_results):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.set_window_size(1200, 900)
    browser.get(report.write(make_results(seeds=(3, 5)).results).as_uri())
    number = browser.find_element(By.CSS_SELECTOR, "#generation table td button")
    assert number.text.endswith("(n=2)")
    number.send_keys(Keys.ENTER)
    first = browser.find_element(By.ID, number.get_attribute("popovertarget"))
    assert first.is_displayed() and "mean of 2 seeds" in first.text
    other = next(button for button in first.find_elements(By.TAG_NAME, "button") if "seed 5" in button.text)
    other.send_keys(Keys.ENTER)
    second = browser.find_element(By.ID, other.get_attribute("popovertarget"))
    assert second.is_displayed() and "seed5" in second.text
    assert browser.get_log("browser") == []
