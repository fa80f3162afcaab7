"""Code shown to readers runs as shown."""

import contextlib
import io
import re
import warnings
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_quickstart_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    names: dict = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The network is not at a minimum")
        exec(code, names)
    assert names["probabilities"].shape == (5, 2)
    assert "train NLL, decoded" in output.getvalue()


def test_pictures_of_the_readme_exist():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / picture).exists()
