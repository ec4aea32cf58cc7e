"""Jaxprs as both lines of jax hand them out: 0.10, and 0.12 with its merged form."""


def open_jaxpr(closed):
    """A jaxpr and its constants; jax 0.12 merged the closed form into the open one."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def inner_jaxpr(eqn):
    """The jaxpr that an equation calls, and its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return open_jaxpr(eqn.params[name])
    msg = f"`{eqn.primitive.name}` holds no program under a known name: {sorted(eqn.params)}."  # noqa: E501
    raise NotImplementedError(msg)


def scan_split(params) -> tuple[int, int]:
    """Where a scan's operands turn from constants to carry, and to inputs."""
    if "num_consts" in params:
        first = params["num_consts"]
        return first, first + params["num_carry"]
    # jax 0.12 keeps the three groups as flat trees.
    consts, carry, _ = (len(tuple(part)) for part in params["ft_in"].unpack())
    return consts, consts + carry


def reached_by_images(body, images, first, second) -> list[bool]:
    """Which entries of a scan's carry the image reaches, in some iteration."""
    images, carried = list(images), range(first, second)
    while True:
        reached = dict(zip(body.invars, images, strict=True))
        for eqn in body.eqns:
            image = any(reached.get(v) for v in eqn.invars if not hasattr(v, "val"))
            reached.update(dict.fromkeys(eqn.outvars, image))
        outs = [
            not hasattr(v, "val") and reached.get(v, False)
            for v in body.outvars[: len(carried)]
        ]
        after = [a or b for a, b in zip(images[first:second], outs, strict=True)]
        if after == images[first:second]:
            return after
        images[first:second] = after


def bind(eqn, arrays):
    """Evaluate one equation as it stands, custom derivatives included."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        outputs = eqn.primitive.bind(*functions, *arrays, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def evaluate(jaxpr, consts, arrays, replacement) -> list:
    """A program's outputs, some of its equations replaced.

    `replacement` makes of an equation a function of its inputs with a single output, or
    None where it stays. What is called through `jit` belongs to the program; other
    calls, loops and branches are equations.
    """
    known = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arrays), strict=True)
    )

    def value(v):
        return v.val if hasattr(v, "val") else known[v]

    for eqn in jaxpr.eqns:
        given = [value(v) for v in eqn.invars]
        function = replacement(eqn)
        if function is not None:
            outputs = [function(*given)]
        elif eqn.primitive.name in ("jit", "pjit"):
            outputs = evaluate(*inner_jaxpr(eqn), given, replacement)
        else:
            outputs = bind(eqn, given)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [value(v) for v in jaxpr.outvars]
