"""Which tensors of a traced model share memory, so that a step in place changes all of them.

A program writes to a view, and reads what it is a view of:

    F.relu_(y[:, :2])        half = y[:, :2]; rectified = relu_(half); y = written(y, rectified, half's view)
    return self.conv(y)      return self.conv(y)

fx records the calls, but not that y has changed. Here every tensor of the program is an `Alias`, which knows the tensor
that it is a view of. A write to one of them adds steps that compute the others again, for later readers. If torch
decides at run time whether a step gives a view or a copy (`reshape`, `contiguous`, `flatten`), the write is refused.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from zfnet.operations import DECONVNET, MOVES, SPLITS, named, piece, through, through_dropout, written
from zfnet.tracing import gives_number

# the same tensor under another name
_SAME = {nn.Identity, *(operation for operation, row in DECONVNET.items() if row.back is through_dropout)}
# always a view
_VIEWS = {
    piece,
    operator.getitem,
    *named(
        "Tensor.view Tensor.view_as Tensor.unsqueeze torch.unsqueeze Tensor.squeeze torch.squeeze Tensor.permute "
        "torch.permute Tensor.transpose torch.transpose Tensor.movedim torch.movedim Tensor.moveaxis torch.moveaxis "
        "Tensor.swapaxes torch.swapaxes Tensor.swapdims torch.swapdims Tensor.narrow torch.narrow Tensor.select "
        "torch.select Tensor.detach torch.detach Tensor.diagonal torch.diagonal Tensor.t torch.t Tensor.unflatten "
        "torch.unflatten Tensor.expand Tensor.expand_as Tensor.broadcast_to torch.broadcast_to Tensor.unfold "
        "torch.atleast_3d Tensor.adjoint torch.adjoint"
    ),
}
_COPIES = set(named("Tensor.clone torch.clone Tensor.repeat nn.ChannelShuffle F.channel_shuffle torch.channel_shuffle"))
# a view or a copy
_MAYBE = {
    *SPLITS,
    *MOVES,
    *named("Tensor.cpu Tensor.cuda Tensor.as_strided torch.as_strided Tensor.reshape_as Tensor.ravel torch.ravel"),
    *named("torch.positive Tensor.positive Tensor.requires_grad_"),
    *(operation for operation, row in DECONVNET.items() if row.back is through),
} - _COPIES
_SHARING = _SAME | _VIEWS | _MAYBE
_ATTRIBUTES = ("data", "T", "mT", "H", "mH", "real")


@dataclass(eq=False)
class Alias:
    """A tensor of the program: the steps that gave it, of which the last is what it is now."""

    nodes: list[fx.Node]
    base: "Alias | None" = None
    template: fx.Node | None = None  # the step that made it a view of its base
    sure: bool = True  # whether it is a view
    views: list["Alias"] = field(default_factory=list)

    def family(self) -> Iterator["Alias"]:
        """All tensors that share its memory."""
        root = self
        while root.base:
            root = root.base
        members = [root]
        for member in members:
            members += member.views
        yield from members

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The steps behind `node` that read it."""
        return [user for one in self.nodes for user in one.users if user > node]

    def is_within(self, other: "Alias") -> bool:
        return self is other or (self.base is not None and self.base.is_within(other))


class Aliases:
    """The tensors of a traced program, recorded step by step in its order.

    Args:
        key: what a step is looked up by.
        refuse: the error for a step that works in place on memory that is read later as another step's output.
    """

    def __init__(self, key: Callable[[fx.Node], Any], refuse: Callable[[fx.Node, fx.Node], Exception]):
        self._key, self._refuse = key, refuse
        self._aliases: dict[fx.Node, Alias] = {}
        self._added: dict[fx.Node, str] = {}  # the steps that a write has added

    def add(self, node: fx.Node) -> None:
        """Record a step that does not work in place."""
        if node in self._aliases:
            return
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        key = self._key(node)
        if source is None or not self.may_view(node):
            self._aliases[node] = Alias([node])
        elif key in _SAME:
            self._aliases[node] = self._aliases[source]
            self._aliases[node].nodes.append(node)
        else:
            sure = key in _VIEWS and not any(isinstance(argument, torch.dtype) for argument in node.args)
            alias = Alias([node], self._aliases[source], node, sure)
            self._aliases[source].views.append(alias)
            self._aliases[node] = alias

    def may_view(self, node: fx.Node) -> bool:
        """Whether a step's output may share the memory of its first input."""
        key = self._key(node)
        if key is operator.getitem:
            return not gives_number(node) and _is_basic(node.args[1])
        return key in _SHARING or (node.target is getattr and node.args[1] in _ATTRIBUTES)

    def write(self, node: fx.Node, source: fx.Node) -> list[fx.Node]:
        """Record a step that works in place on its source; returns the steps to add after it."""
        alias = self._aliases[source]
        readers = {member: members for member in alias.family() if (members := member.readers(node))}
        alias.nodes.append(node)
        self._aliases[node] = alias
        renewal = _Renewal(node, alias, self._refuse)
        for member, users in readers.items():
            now = renewal.of(member, users)
            for user in users:
                for before in [n for n in member.nodes if n is not now]:
                    user.replace_input_with(before, now)
        for added, member in renewal.added.items():
            self._aliases[added] = member
        return list(renewal.added)


@dataclass
class _Renewal:
    """Update the tensors of a family after a write to one of them."""

    node: fx.Node
    alias: Alias
    refuse: Callable[[fx.Node, fx.Node], Exception]
    added: dict[fx.Node, Alias] = field(default_factory=dict)
    fresh: dict[Alias, fx.Node] = field(default_factory=dict)

    def of(self, member: Alias, users: list[fx.Node]) -> fx.Node:
        """The step that gives a tensor of the family now."""
        if member is self.alias:
            return self.node
        if member not in self.fresh:
            self.fresh[member] = self._made(member, users)
            member.nodes.append(self.fresh[member])
        return self.fresh[member]

    def _made(self, member: Alias, users: list[fx.Node]) -> fx.Node:
        if self.alias.is_within(member):  # the part that was written is put into it
            part = next(view for view in member.views if self.alias.is_within(view))
            before, view = member.nodes[-1], part.template
            assert view is not None
            if not part.sure:
                raise self.refuse(self.node, before)
            function = getattr(Tensor, view.target) if isinstance(view.target, str) else view.target
            return self._insert(member, written, (before, self.of(part, users), function, view.args[1:], view.kwargs))
        assert member.base is not None and member.template is not None
        if not member.sure:
            raise self.refuse(self.node, member.nodes[-1])
        base, template = self.of(member.base, users), member.template
        return self._insert(member, template.target, (base, *template.args[1:]), template.kwargs, template.op)

    def _insert(
        self, member: Alias, target: Any, args: Any, kwargs: Any = None, operation: str = "call_function"
    ) -> fx.Node:
        graph, last = self.node.graph, next(reversed(self.added), self.node)
        with graph.inserting_after(last):
            node = graph.create_node(operation, target, args, kwargs or {})
        self.added[node] = member
        return node


def _is_basic(index: Any) -> bool:
    """Whether an index gives a view: of numbers and slices, not of tensors or lists."""
    if isinstance(index, tuple):
        return all(map(_is_basic, index))
    if isinstance(index, fx.Node):
        return gives_number(index)
    return index is None or index is ... or isinstance(index, int | slice)
