"""The page in Chromium, where that is installed: loaded from the disk, played with, silent."""

import base64
import io
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from jaxcnn import networks
from jaxcnn.data import digits
from jaxcnn.explorer import make_page
from jaxcnn.networks.speedrun import Speedrun
from jaxcnn.networks.tutorial import CNN
from jaxcnn.pictures import Picture
from jaxcnn.weights import Weights
from tests.explorer.javascript import evaluate

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def written(path, network, read, title, dataset=None):
    """Write the page of a network of random variables."""
    rng = np.random.default_rng(0)
    shapes = networks.variable_shapes(network)
    variables = networks.nested({name: rng.standard_normal(shape, np.float32) / 4 for name, shape in shapes.items()})
    for tree in variables.get("batch_stats", {}).values():
        tree["var"] = np.ones_like(tree["var"])
    weights = Weights(network, variables, tuple("0123456789"), dataset)
    path.write_text(make_page(weights, read, weights.class_names, title))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Three digits, whose names HTML and JSON have to escape."""
    read = [
        Picture(f"<!--<script></script>{i}", image, str(i))
        for i, image in enumerate(digits.load_digits().test.images[:3])
    ]
    return written(tmp_path_factory.mktemp("page") / "page.html", CNN(6, 50), read, "Inside <b>", "digits")


@contextmanager
def opened(browser, file, **options):
    """The page, which has to say nothing and to load nothing."""
    page = browser.new_page(**options)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    settle(page)
    yield page
    page.close()
    assert not said
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]


@pytest.fixture
def page(browser, file, request):
    with opened(browser, file, **getattr(request, "param", {"viewport": {"width": 1366, "height": 800}})) as page:
        yield page


def settle(page):
    """Wait until what is scheduled is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def point(page, layer, map_, row, column, click=False):
    """Point at a pixel of a map."""
    canvas = page.evaluate_handle("(name) => views.get(name).canvas", layer).as_element()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y, zoom = page.evaluate(
        "([name, map]) => { const {layout} = views.get(name); return [...cornerOf(layout, map), layout.zoom]; }",
        [layer, map_],
    )
    at = box["x"] + x + (column + 0.5) * zoom, box["y"] + y + (row + 0.5) * zoom
    (page.mouse.click if click else page.mouse.move)(*at)
    settle(page)


def text(page, selector):
    return page.locator(selector).inner_text()


def test_it_shows_all_layers_and_the_classes(page):
    assert text(page, "h1") == "Inside <b>"
    headings = page.locator("h3").all_inner_texts()
    assert [heading.split()[0] for heading in headings] == [
        "input", "conv1", "act1", "drop1", "conv2", "act2", "pool2", "flat", "fc3", "act3", "drop3", "fc4",
    ]  # fmt: skip
    shares = [float(row.split("\n")[-1].rstrip(" %")) for row in page.locator("#classes li").all_inner_texts()]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.6)
    assert text(page, "#about") == "<!--<script></script>0: 0"
    assert page.locator("#choices button").first.get_attribute("title") == "<!--<script></script>0: 0"


def test_a_click_explains_a_number_and_the_pointer_moves_its_receptive_field(page):
    point(page, "conv2", 3, 10, 12, click=True)
    assert text(page, "#what") == "conv2, map 3 at row 10, column 12"
    y = page.evaluate("number(valueAt(state.outputs.conv2, {map: 3, row: 10, column: 12}))")
    assert f"y = {y}" in text(page, "#lines")
    assert "act2: max(0, " in text(page, "#lines")
    assert page.locator("#products td").count() == 9 * 4
    drawn = "() => views.get('conv1').over.toDataURL()"
    before = page.evaluate(drawn)
    point(page, "conv2", 3, 20, 20)
    assert text(page, "#what") == "conv2, map 3 at row 20, column 20"
    assert text(page, "#status").startswith("conv2, map 3 at row 20, column 20: ")
    assert page.evaluate(drawn) != before
    page.mouse.move(2, 2)
    point(page, "pool2", 1, 4, 5, click=True)
    assert "won" in text(page, "#lines")
    point(page, "fc3", 7, 0, 0, click=True)
    assert text(page, "#what") == "fc3, unit 7"
    assert page.locator("#terms").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#explanation").is_visible()


def test_all_of_it_by_keyboard(page):
    page.evaluate("() => views.get('conv1').canvas.focus()")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert text(page, "#status").startswith("conv1, map 1 ")
    page.keyboard.press("Enter")
    settle(page)
    assert text(page, "#what") == "conv1, map 1 at row 16, column 16"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert text(page, "#what") == "conv1, map 1 at row 15, column 15"
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement === views.get('conv1').canvas")
    page.keyboard.press("ArrowRight")
    assert text(page, "#status").startswith("conv1, map 2 ")  # not from the first again
    focused = "() => document.activeElement.id || document.activeElement.ariaLabel.split(':')[0]"
    for layer, *expected in [("fc3", "fc3, unit 1", "fc3"), ("conv2", "conv2, map 1 at row 16, column 16", "large")]:
        page.evaluate("(name) => views.get(name).canvas.focus()", layer)
        for key in ("ArrowRight", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        assert [text(page, "#what"), page.evaluate(focused)] == expected
    listed = text(page, "#products caption")
    page.locator("#terms").focus()
    page.keyboard.press("ArrowRight")
    assert text(page, "#products caption") != listed


def test_a_chosen_map_and_what_is_said_of_it_are_in_view(page):
    page.evaluate("() => views.get('fc3').canvas.focus()")
    page.keyboard.press("ArrowRight")
    page.select_option("#jump", "conv1")
    settle(page)
    assert 0 < page.locator("h3", has_text="conv1").bounding_box()["y"] < 300
    page.evaluate("() => views.get('act2').canvas.focus({preventScroll: true})")
    page.keyboard.press("ArrowRight")
    top = page.evaluate("() => views.get('act2').canvas.getBoundingClientRect().top")
    assert 40 < top < 800
    box = page.locator("#status").bounding_box()
    assert 0 <= box["y"] < 60


def png(width, height):
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    Image.fromarray(pixels).convert("RGB").save(file, "PNG")
    return file.getvalue(), np.asarray(Image.fromarray(pixels).convert("RGB"))


DROP = """([content, type]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const event = {dataTransfer: new DataTransfer(), clipboardData: new DataTransfer(), bubbles: true, cancelable: true};
  for (const transfer of [event.dataTransfer, event.clipboardData]) transfer.items.add(new File([bytes], "cat.png"));
  document.body.dispatchEvent(type === "drop" ? new DragEvent("drop", event) : new ClipboardEvent("paste", event));
}"""


@pytest.mark.parametrize("way", ["open", "drop", "paste"])
def test_a_picture_that_is_given_is_seen(page, way):
    content, pixels = png(70, 50)
    if way == "open":
        page.set_input_files("#open", {"name": "cat.png", "mimeType": "image/png", "buffer": content})
    else:
        page.evaluate(DROP, [base64.b64encode(content).decode(), way])
    page.wait_for_function("() => document.getElementById('about').textContent === 'cat.png'")
    opaque = np.concatenate([pixels, np.full((50, 70, 1), 255, np.uint8)], axis=-1).ravel().tolist()
    expected = evaluate("squared({data: Uint8Array.from(input.data), width: 70, height: 50})", data=opaque)
    assert page.evaluate("() => [...state.pixels]") == expected


def test_what_is_no_picture_is_said(page):
    page.set_input_files("#open", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no"})
    said = "() => document.getElementById('status').textContent"
    page.wait_for_function(f"{said}.includes('a.txt is not a picture')")
    picture = {"name": "cat.png", "mimeType": "image/png", "buffer": png(40, 40)[0]}
    for _ in range(2):  # the same file twice, another between
        page.set_input_files("#open", picture)
        page.wait_for_function("() => document.getElementById('about').textContent === 'cat.png'")
        assert not page.evaluate(said)
        assert not page.evaluate("() => document.getElementById('open').value")
        page.locator("#choices button").first.click()


def test_the_picture_that_was_asked_for_last_is_shown(page):
    """However long an earlier one takes."""
    slow = {"name": "slow.png", "mimeType": "image/png", "buffer": png(3000, 3000)[0]}
    page.set_input_files("#open", slow)
    page.locator("#choices button").nth(1).click()
    page.wait_for_timeout(1500)
    assert text(page, "#about") == "<!--<script></script>1: 1"


def test_a_drawing_is_classified_at_once(page):
    board = page.locator("#board")
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    before = text(page, "#classes")
    page.mouse.move(box["x"] + 60, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 180, steps=5)
    page.mouse.up()
    settle(page)
    assert text(page, "#about") == "your drawing"
    assert text(page, "#classes") != before
    assert page.evaluate("() => Math.max(...state.pixels)") > 200
    page.locator("#wipe").click()
    assert page.evaluate("() => Math.max(...state.pixels)") == 0


def test_colours_of_a_map_of_its_own(page):
    drawn = "() => views.get('conv1').canvas.toDataURL()"
    before = page.evaluate(drawn)
    page.get_by_label("one a map").check()
    settle(page)
    assert page.evaluate(drawn) != before


LOOKS = {
    "telephone": {"viewport": {"width": 390, "height": 800}},
    "dark": {"viewport": {"width": 1366, "height": 800}, "color_scheme": "dark"},
}


@pytest.mark.parametrize("page", LOOKS.values(), ids=LOOKS, indirect=True)
def test_it_fits_a_telephone_and_the_dark(page):
    point(page, "conv2", 2, 5, 5, click=True)
    assert page.locator("#what").is_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    wide = page.locator("#layers").bounding_box()["width"]
    assert wide > min(600, 0.9 * page.evaluate("() => innerWidth"))  # on a telephone the layers have it all
    ink, ground = page.evaluate(
        "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    dark = page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches")
    assert (brightness(ink) > brightness(ground)) == dark


def brightness(colour):
    return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))


def test_the_second_network_is_shown_by_the_same_page(browser, tmp_path):
    read = [Picture("a", np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))]
    with opened(browser, written(tmp_path / "page.html", Speedrun(8, 10, 12), read, "fast")) as page:
        for layer in ("whiten", "pool1", "norm2", "act2", "pool7", "head"):
            point(page, layer, 1, 0, 0, click=True)
            assert text(page, "#what").startswith(layer)
        page.wait_for_function("() => document.querySelectorAll('#classes li').length === 10")
        assert not page.locator("#drawing").is_visible()
