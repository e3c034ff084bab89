"""The page's functions, run by the JavaScript engine that Playwright's package brings."""

import json
import subprocess
from pathlib import Path
from typing import Any

import playwright

from jaxcnn.explorer import page

NODE = Path(playwright.__file__).parent / "driver" / "node"
DRAWING = ("detail.js", "choices.js", "state.js", "page.js")
SOURCES = [(page.HERE / name).read_text() for name in page.SCRIPTS if name not in DRAWING]
READ = """
const input = JSON.parse(require("fs").readFileSync(0, "utf8"));
const decoded = (text, Kind) => new Kind(new Uint8Array(Buffer.from(text, "base64")).buffer);
const network = input.page;
for (const layer of network?.layers ?? []) {
  for (const [name, text] of Object.entries(layer.arrays)) layer.arrays[name] = decoded(text, Float32Array);
}
"""


def evaluate(expression: str, **given: Any) -> Any:
    """Evaluate an expression that reads `input`; its `page`, as page.py writes it, is the network of `network`."""
    source = "\n".join(['"use strict";', *SOURCES, "{", READ])
    source += "\nconst write = (_, value) => (ArrayBuffer.isView(value) ? [...value] : value);"
    source += f"\nprocess.stdout.write(JSON.stringify({expression}, write));}}"
    done = subprocess.run(
        [NODE, "--input-type=commonjs", "-e", source],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-2000:]
    return json.loads(done.stdout)
