"""A pytest plugin that searches the whole test run for credentials in places where none may appear.

The plugin knows the credentials of `credentials`. It learns others from the calls that use them: API keys, tokens,
secret fields of requests and answers, and signatures in URLs. It searches:

- every log record,
- every error of the SDK with its whole traceback, when the error is destroyed, because it is complete by then,
- the `repr` of every model that a call sends or returns,
- every event and span, and the attributes of every metric,
- every journal and webhook store in a temporary folder,
- the output of every test, and of every process that a test waits for.

A test in which a credential is found has an error.
"""

import contextlib
import gc
import linecache
import logging
import pickle
import re
import sqlite3
import struct
import sys
import traceback
from collections.abc import Container, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, cast
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

import anyio
import credentials
import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import Counter, Histogram, UpDownCounter
from opentelemetry.sdk.trace import Span

from convertrilo._http import call as _call
from convertrilo._http import engine as _engine
from convertrilo._http import request as _request
from convertrilo._http.credentials import Credentials
from convertrilo._model import Model
from convertrilo.codec import to_wire
from convertrilo.errors import ConvertriloError
from convertrilo.events import AttemptEvent

_NAMES = {"accessKeyId", "secretAccessKey", "accessToken", "refreshToken", "sessionToken", "password", "secret"}
_SIGNATURE = re.compile(r"signature$|^sig$|^token$", re.IGNORECASE)
_IS_SECRET = re.compile(r"^(?=.*\d).{10}", re.DOTALL)  # shorter strings and mere words occur in texts by chance
_JOURNAL = 0x43565254
_REMEMBERED = 200
_APPLICATIONS = {_JOURNAL, 0x43565744}  # application ids of the SQLite files of the journal and of the webhook store


class Watch:
    """The known secrets, and the places where one was found."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._always = list(_spellings(credentials.ALL))
        self._learned: dict[str, None] = {}
        self._signatures: dict[str, None] = {}
        self._answered: dict[str, None] = {}
        """Secrets from answers of the service: a command may print them on stdout."""
        self._seen: set[int] = set()
        self.folders: set[Path] = set()
        """Temporary folders of fixtures, which are searched at the end."""

    def know(self, *secrets: object) -> None:
        """Learn secrets, except short ones and mere words."""
        self._learn(self._learned, secrets)

    def know_those_in(self, wire: object) -> None:
        """Learn the secrets of a body."""
        self._learn(self._learned, _secrets_in(wire))
        self._learn(self._signatures, _signatures_in(wire))

    def know_the_answer(self, answer: Model) -> None:
        """Learn the secrets of an answer."""
        wire = to_wire(answer)
        secrets = [*_secrets_in(wire), getattr(answer, "key", None)]
        self.know_those_in(wire)
        self.know(*secrets)
        self._learn(self._answered, secrets)

    def _learn(self, known: dict[str, None], secrets: Iterable[object]) -> None:
        fresh = {each for each in secrets if isinstance(each, str) and _IS_SECRET.search(each)}
        known |= dict.fromkeys(each for each in _spellings(fresh) if each not in self._always)

    def forget_old_signatures(self) -> None:
        """Forget all but the latest signatures. A run has thousands, with which every search would take 15 ms."""
        for each in [*self._signatures][:-_REMEMBERED]:
            del self._signatures[each]

    def look(self, where: str, text: str, but_for: Container[str] = ()) -> None:
        """Search a text for all known secrets."""
        for secret in (*self._always, *self._learned, *self._signatures):
            if secret in text and secret not in but_for:
                at = text.index(secret)
                self.found.append(f"{where} shows {secret!r}: …{text[max(0, at - 200) : at + len(secret) + 40]}…")
                return

    def look_at_output(self, of: object, out: str | bytes | None, err: str | bytes | None) -> None:
        """Search the output of a process, or of this one. Its stdout may show secrets from answers."""
        for text, but_for in ((out, {**self._signatures, **self._answered}), (err, ())):
            shown = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
            self.look(f"the output of {of}", shown, but_for)

    def look_at_files(self, folder: Path) -> None:
        """Search the journals and webhook stores below a folder, except answers, which are kept as received."""
        for file in folder.rglob("*"):
            base = Path(str(file).removesuffix("-wal"))
            if not file.is_symlink() and file.is_file() and (kind := _application_of(base)) in _APPLICATIONS:
                written = file.read_bytes()
                for answer in _answers_in(base) if kind == _JOURNAL else ():
                    written = written.replace(answer, b"")
                self.look(f"the file {file.name}", written.decode("latin-1"), self._signatures)

    def look_at_error(self, error: BaseException) -> None:
        """Search everything that an error can show, once for all errors that show the same."""
        if sys.is_finalizing():
            return
        shown = "\n".join(map(str, (repr(error), vars(error), *_chain(error))))
        if hash(shown) in self._seen:
            return
        self._seen.add(hash(shown))
        self.look("an error", shown)
        with contextlib.suppress(Exception):  # some tests make errors that cannot be pickled
            self.look("a pickled error", pickle.dumps(error, 0).decode("latin-1"))
        self.look("a traceback", "\n".join(_lines_of(error)))


def _spellings(secrets: Iterable[str]) -> Iterable[str]:
    for each in secrets:
        yield from {each, quote(each, safe=""), quote_plus(each), repr(each)[1:-1]}


def _chain(error: BaseException | None) -> Iterable[str]:
    while error is not None:
        yield f"{error} {getattr(error, '__notes__', '')}"
        error = error.__cause__ or error.__context__


def _lines_of(error: BaseException | None) -> Iterable[str]:
    """Yield the lines of code that a traceback shows. `traceback` parses code, which a finalizer must not do."""
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            yield linecache.getline(frame.f_code.co_filename, line)
        error = error.__cause__ or error.__context__


def _application_of(file: Path) -> int | None:
    try:
        with file.open("rb") as opened:
            head = opened.read(100)
    except OSError:
        return None
    return struct.unpack(">I", head[68:72])[0] if head.startswith(b"SQLite format 3\0") else None


def _answers_in(journal: Path) -> Iterable[bytes]:
    with contextlib.suppress(sqlite3.Error):  # some tests damage the file
        with contextlib.closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            answers = connection.execute("SELECT answer FROM operations WHERE answer IS NOT NULL").fetchall()
        return [answer for (answer,) in answers]
    return []


def _texts_in(wire: object, name: str = "") -> Iterable[tuple[str, str]]:
    """Yield each text of a body with its field's name, except metadata, which callers may show."""
    if isinstance(wire, Mapping):
        for field, value in cast("Mapping[str, object]", wire).items():
            if field != "metadata":
                yield from _texts_in(value, field)
    elif isinstance(wire, str):
        yield name, wire
    elif isinstance(wire, Sequence) and not isinstance(wire, bytes):
        for each in cast("Sequence[object]", wire):
            yield from _texts_in(each, name)


def _secrets_in(wire: object) -> Iterable[str]:
    """Yield the secrets of a body by the contract's field names, and not by the SDK's own list."""
    return (text for name, text in _texts_in(wire) if name in _NAMES)


def _signatures_in(wire: object) -> Iterable[str]:
    for _, text in _texts_in(wire):
        if "?" in text:
            yield from (value for field, value in parse_qsl(urlsplit(text).query) if _SIGNATURE.search(field))


WATCH = Watch()


# ---- where the plugin searches


class _Records(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.getMessage()} {vars(record)}"
        if record.exc_info and record.exc_info[1]:
            text += "".join(traceback.format_exception(record.exc_info[1]))
        WATCH.look(f"the log {record.name}", text)


def _watch_everything() -> None:
    init, get_token, content, run = Credentials.__init__, Credentials.token, _request.encoded_body, _call.Call.run
    end_of_span, event_init, observation_init = Span.end, AttemptEvent.__init__, Observation.__init__
    add, change, record = Counter.add, UpDownCounter.add, Histogram.record
    communicate, run_process, readouterr = Popen.communicate, anyio.run_process, pytest.CaptureFixture.readouterr
    mktemp = pytest.TempPathFactory.mktemp

    def init_and_know(self: Credentials, api_key: str | None, *arguments: Any) -> None:
        WATCH.know(api_key)
        init(self, api_key, *arguments)

    async def token_and_know(self: Credentials) -> str:
        token = await get_token(self)
        WATCH.know(token)
        return token

    def content_and_look(operation: Any, body: Any) -> Any:
        wire, sent = content(operation, body)
        WATCH.know_those_in(wire)
        if isinstance(body, Model):
            WATCH.look("a request's repr", repr(body))
        return wire, sent

    async def run_and_look(self: _call.Call[Any]) -> Any:
        answered = await run(self)
        if isinstance(answered[0], Model):
            WATCH.know_the_answer(answered[0])
            WATCH.look("an answer's repr", repr(answered[0]))
        return answered

    def look_at_error(self: ConvertriloError) -> None:
        WATCH.look_at_error(self)

    def end_and_look(self: Span, *arguments: Any, **options: Any) -> None:
        end_of_span(self, *arguments, **options)
        WATCH.look("a span", self.to_json())

    def init_and_look(self: AttemptEvent, *arguments: Any, **fields: Any) -> None:
        event_init(self, *arguments, **fields)
        WATCH.look("an event", repr(self))

    def measuring(measure: Any) -> Any:
        def measure_and_look(self: Any, value: Any, attributes: Any = None, *more: Any, **options: Any) -> None:
            WATCH.look("a metric", repr(attributes))
            measure(self, value, attributes, *more, **options)

        return measure_and_look

    def communicate_and_look(self: Popen[Any], *arguments: Any, **options: Any) -> Any:
        printed = communicate(self, *arguments, **options)
        WATCH.look_at_output(self.args, *printed)
        return printed

    def make_and_note(self: pytest.TempPathFactory, *arguments: Any, **options: Any) -> Path:
        folder = mktemp(self, *arguments, **options)
        WATCH.folders.add(folder)
        return folder

    async def run_and_look_at_output(command: Any, **options: Any) -> Any:
        done = await run_process(command, **options)
        WATCH.look_at_output(command, done.stdout, done.stderr)
        return done

    def read_and_look(self: pytest.CaptureFixture[Any]) -> Any:
        printed = readouterr(self)
        WATCH.look_at_output("the test", *printed)
        return printed

    for owner, name, value in (
        (Credentials, "__init__", init_and_know),
        (Credentials, "token", token_and_know),
        (_engine, "encoded_body", content_and_look),
        (_call.Call, "run", run_and_look),
        (Span, "end", end_and_look),
        (AttemptEvent, "__init__", init_and_look),
        (Counter, "add", measuring(add)),
        (UpDownCounter, "add", measuring(change)),
        (Histogram, "record", measuring(record)),
        (Observation, "__init__", measuring(observation_init)),
        (Popen, "communicate", communicate_and_look),
        (anyio, "run_process", run_and_look_at_output),
        (pytest.CaptureFixture, "readouterr", read_and_look),
        (pytest.TempPathFactory, "mktemp", make_and_note),
        (ConvertriloError, "__del__", look_at_error),
    ):
        setattr(owner, name, value)
    logging.getLogger().addHandler(_Records())
    logging.getLogger("convertrilo").setLevel(logging.DEBUG)


# ---- pytest's hooks


def pytest_configure() -> None:
    _watch_everything()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for name, text in report.sections:
        if name.startswith("Captured stdout"):
            WATCH.look_at_output("the test", text, None)
        elif name.startswith("Captured stderr"):
            WATCH.look_at_output("the test", None, text)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    folder = item.funcargs.get("tmp_path") if isinstance(item, pytest.Function) else None
    if isinstance(folder, Path):
        WATCH.look_at_files(folder)
        WATCH.folders.discard(folder)
    result = yield
    WATCH.forget_old_signatures()
    if nextitem is None:  # a secret that is found later belongs to no test
        for each in WATCH.folders:
            WATCH.look_at_files(each)
        gc.collect()
    if WATCH.found:
        found, WATCH.found = WATCH.found, []
        pytest.fail("credentials are seen:\n" + "\n".join(dict.fromkeys(found)), pytrace=False)
    return result
