"""From a script's or notebook's source to a module that defines one model and nothing else.

Of all statements at the top level only those are kept that the model needs, directly or through others: imports,
functions, classes, assignments of whatever value, and `if` and `try` around them. What trains, prints or loads data
stays behind, all loops among it, so a script needs no `__main__` guard. A notebook's cells may have run in any order
and more than once: the last definition of a name counts, and each statement comes after those that it reads when it
runs.
"""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType

from contract.errors import CodeError

_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
_READS, _BINDS = frozenset({"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}), frozenset({"STORE_NAME"})
#: Where scripts train, print and load data.
_STAYS_BEHIND = (ast.Expr, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Match)


@dataclass(frozen=True)
class _Statement:
    """One statement at the top level, by the global names that it touches."""

    node: ast.stmt
    binds: frozenset[str]
    amends: frozenset[str]
    """Names whose values it changes in place: `settings["width"] = 3`."""
    now: frozenset[str]
    """Names that it reads when it runs."""
    later: frozenset[str]
    """Names that the functions which it defines read when they are called."""
    always: bool
    """Whether it binds its names whenever it runs; an `if` may not."""
    future: bool
    """Whether its source postpones annotations."""


def extract(sources: Sequence[str], name: str) -> str:
    """The source of a module with the class or function `name` of these sources and all that it needs.

    `sources` are texts in the order in which they ran; one that is no Python did not run and is passed over. Raises
    CodeError when no statement at the top level defines `name`.
    """
    statements = [statement for source in sources for statement in _statements(source)]
    chosen = _Slice(statements).of(name)
    body = [statement.node for statement in chosen]
    if any(statement.future for statement in chosen):
        body.insert(0, ast.ImportFrom("__future__", [ast.alias("annotations")], 0))
    return ast.unparse(ast.fix_missing_locations(ast.Module(body, []))) + "\n"


class _Slice:
    """The statements that a name needs, in an order in which they can run."""

    def __init__(self, statements: Sequence[_Statement]) -> None:
        self._statements = statements
        self._touching: dict[str, list[int]] = defaultdict(list)
        for index, statement in enumerate(statements):
            for name in statement.binds | statement.amends:
                self._touching[name].append(index)
        self._done: set[int] = set()
        self._chosen: list[int] = []
        self._later: list[str] = []

    def of(self, name: str) -> list[_Statement]:
        if name not in self._touching:
            raise CodeError(
                f"model: {name} is not defined at the top level of the script or notebook; put it there, or into a "
                ".py file and import it"
            )
        for index, statement in enumerate(self._statements):  # who knows what `import *` binds
            if "*" in statement.binds:
                self._take(index)
        self._later.append(name)
        while self._later:
            wanted = self._later.pop()
            for index in self._definitions(wanted, len(self._statements)):
                self._take(index)
        return [self._statements[index] for index in self._chosen]

    def _definitions(self, name: str, before: int) -> list[int]:
        """The statements that make the value of a name: the last one that binds it anew, and those that amend it."""
        found: list[int] = []
        for index in reversed([i for i in self._touching.get(name, ()) if i < before]):
            found.append(index)
            statement = self._statements[index]
            if statement.always and name in statement.binds and name not in statement.now:
                break
        return found[::-1]

    def _take(self, index: int) -> None:
        if index in self._done:
            return
        self._done.add(index)
        statement = self._statements[index]
        for name in sorted(statement.now):
            own = name in statement.binds or name in statement.amends
            for earlier in self._definitions(name, index if own else len(self._statements)):
                self._take(earlier)
        self._chosen.append(index)
        self._later += sorted(statement.later)


def _statements(source: str) -> Iterator[_Statement]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    future = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.names[0].name == "annotations"
        for node in tree.body
    )
    for node in tree.body:
        if isinstance(node, _STAYS_BEHIND) or _is_future(node) or _is_main_guard(node):
            continue
        always = not isinstance(node, ast.If | ast.Try)
        star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        try:
            now, later, binds = _names(_compiled(node, future))
        except SyntaxError:  # `return` or `await` outside of a function: only a notebook can run that
            continue
        amends = frozenset(_amended(node))
        binds |= {"*"} if star else set()
        yield _Statement(node, frozenset(binds), amends, frozenset(now | amends), frozenset(later), always, future)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _compiled(node: ast.stmt, future: bool) -> CodeType:
    flags = __future__.annotations.compiler_flag if future else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user has seen those of the script already
        code: CodeType = compile(ast.Module([node], []), "<definitions>", "exec", flags, dont_inherit=True)
    return code


def _names(code: CodeType) -> tuple[set[str], set[str], set[str]]:
    """Global names that running `code` reads, those that its functions read later, and names that it binds.

    Asked of the compiler, because it tells a function's local names from global ones.
    """
    now = {i.argval for i in dis.get_instructions(code) if i.opname in _READS}
    binds = {i.argval for i in dis.get_instructions(code) if i.opname in _BINDS}
    later: set[str] = set()
    for inner in code.co_consts:
        if not isinstance(inner, CodeType):
            continue
        inner_now, inner_later, _ = _names(inner)
        is_class = not inner.co_flags & inspect.CO_OPTIMIZED
        if is_class or inner.co_name in _COMPREHENSIONS:
            now |= inner_now
        else:
            later |= inner_now
        later |= inner_later
    return now, later, binds


def _amended(node: ast.stmt) -> Iterator[str]:
    """Names at the root of `name[…] = …`, `name.attribute = …` and their like."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    for target in targets:
        changed = isinstance(target, ast.Subscript | ast.Attribute)
        while isinstance(target, ast.Subscript | ast.Attribute):
            target = target.value
        if changed and isinstance(target, ast.Name):
            yield target.id
