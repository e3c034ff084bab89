import pickle
from pathlib import Path

from jaxcnn.errors import UserError


def test_an_error_keeps_its_parts_and_survives_a_process():
    error = UserError("two\nlines", Path("a.png"), "mend  it")
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert (copy.what, copy.where, copy.todo) == ("two\nlines", Path("a.png"), "mend  it")
        assert str(copy) == "two lines: a.png; mend it"
