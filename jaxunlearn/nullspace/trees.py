"""Trees like the parameters that hold a record or None at each leaf."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import is_traced


def map_leaves(
    function: Callable[..., Any],
    kind: type,
    argument: str,
    tree: PyTree,
    **rest: PyTree,
) -> PyTree:
    """`function(path, record, *others)` for every record of a kind; None stays None.

    `argument` and the names of `rest` are what the caller calls the trees. Refused are
    other leaves, no record at all, and trees of another structure.
    """
    is_leaf = leaf_test(kind)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    for path, record in leaves:
        if not (record is None or isinstance(record, kind)):
            msg = f"{argument} must hold a {kind.__name__} or None at {_name(path)}; it holds a {type(record).__name__}."  # noqa: E501
            raise TypeError(msg)
    if all(record is None for _, record in leaves):
        msg = f"{argument} must hold at least one {kind.__name__}; it holds none."
        raise ValueError(msg)
    columns = []
    for name, other in rest.items():
        other = unmasked(other, tree, kind)
        check_structure(name, other, argument, tree, kind)
        columns.append(treedef.flatten_up_to(other))
    results = [
        None if record is None else function(_name(path), record, *others)
        for (path, record), *others in zip(leaves, *columns, strict=True)
    ]
    return treedef.unflatten(results)


def check_structure(
    one_name: str, one: PyTree, other_name: str, other: PyTree, *kinds: type
) -> None:
    """Refuse two trees of different structure, naming the paths that only one has.

    None, `optax.MaskedNode` and records of `kinds` count as leaves.
    """
    is_leaf = leaf_test(*kinds)
    flat = [
        jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
        for tree in (one, other)
    ]
    (ones, one_structure), (others, other_structure) = flat
    if one_structure == other_structure:
        return
    one_paths, other_paths = ({_name(p) for p, _ in flat} for flat in (ones, others))
    differences = [
        f"only {name} has {_listed(sorted(paths))}"
        for name, paths in (
            (one_name, one_paths - other_paths),
            (other_name, other_paths - one_paths),
        )
        if paths
    ] or [f"containers differ: {_cut(one_structure)} and {_cut(other_structure)}"]
    msg = f"{one_name} and {other_name} must be trees of one structure; {' and '.join(differences)}."  # noqa: E501
    raise ValueError(msg)


def unmasked(tree: PyTree, like: PyTree, *kinds: type) -> PyTree:
    """`tree`, a `MaskedNode` for a whole subtree of `like` put at each of its leaves.

    That is what `optax.masked` and `multi_transform` make of a mask on a subtree.
    """

    def spread(node: Any, subtree: PyTree) -> Any:
        if not isinstance(node, optax.MaskedNode):
            return node
        return jax.tree.map(lambda _: node, subtree, is_leaf=leaf_test(*kinds))

    try:
        return jax.tree.map(spread, tree, like, is_leaf=leaf_test())
    except ValueError:  # Other structures: `check_structure` says how they differ.
        return tree


def check_concrete(name: str, array: Any, task: str) -> None:
    """Refuse tracers: `task` runs on the host."""
    if is_traced(array):
        msg = f"{name} is traced, and {task} is host-side work on concrete arrays: call this outside jit, vmap and grad, and pass the result in."  # noqa: E501
        raise TypeError(msg)


def leaf_test(*kinds: type) -> Callable[[Any], bool]:
    """Whether a node is None, an `optax.MaskedNode`, or a record of these kinds."""
    return lambda node: node is None or isinstance(node, (optax.MaskedNode, *kinds))


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return _cut(", ".join(paths[:5])) + more


def _cut(text: Any) -> str:
    return text if len(text := str(text)) <= 200 else f"{text[:200]}..."


def _name(path) -> str:
    return path_name(path) or "the only leaf"
