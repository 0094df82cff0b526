"""The sizes of a pipeline's components: published, or as they are held in memory now.

    published_sizes(model("ltx_video"))       # both show themselves as a table
    component_sizes(pipe.components)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from helpers.charts.table import ShownAsTable, Table
from helpers.models.catalogue import Model
from helpers.units import GIB


@dataclass(frozen=True)
class ComponentSize:
    """Size of one loaded component: its class, parameters, GiB (including buffers), data types and devices."""

    name: str
    class_name: str
    parameters: int
    gib: float
    dtype: str
    device: str


@dataclass(frozen=True, repr=False)
class ComponentSizes(ShownAsTable):
    """A row for each component, in the pipeline's order. Shows itself as a table with a total."""

    rows: tuple[ComponentSize, ...]

    @property
    def gib(self) -> float:
        """GiB of all components together."""
        return sum(row.gib for row in self.rows)

    def table(self) -> Table:
        rows = [
            (row.name, row.class_name, f"{row.parameters / 1e6:,.1f}", f"{row.gib:.2f}", row.dtype, row.device)
            for row in self.rows
        ]
        millions = sum(row.parameters for row in self.rows) / 1e6
        rows.append(("total", "", f"{millions:,.1f}", f"{self.gib:.2f}", "", ""))
        return Table("Components", ("component", "class", "million parameters", "GiB", "dtype", "device"), rows)


def component_sizes(components: Mapping[str, object]) -> ComponentSizes:
    """Measure each loaded component as it is held in memory now.

    Args:
        components: `torch.nn.Module` by name, `pipe.components` for example. Components without weights (tokenizers,
            schedulers, `None`) are left out.
    """
    rows = []
    for name, component in components.items():
        if not hasattr(component, "parameters"):
            continue
        weights = list(component.parameters())
        tensors = [*weights, *component.buffers()]
        rows.append(
            ComponentSize(
                name=name,
                class_name=type(component).__name__,
                # A GGUF parameter is a tensor of packed bytes; `quant_shape` is the shape of the weights in them.
                parameters=sum(math.prod(getattr(weight, "quant_shape", weight.shape)) for weight in weights),
                gib=sum(tensor.nbytes for tensor in tensors) / GIB,
                dtype=" + ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})),
                device=" + ".join(sorted({str(weight.device) for weight in weights})),
            )
        )
    return ComponentSizes(tuple(rows))


def published_sizes(model: Model, bits: Mapping[str, float] = {"fp32": 32, "bf16": 16}) -> Table:  # noqa: B006 - read only
    """Return a table of the published model's components: parameters times bytes, before anything is downloaded.

    Args:
        model: A model of the catalogue.
        bits: Bits per weight by the name of the data type.
    """
    sizes = {**model.parameters, "total": sum(model.parameters.values())}
    rows = [
        [name, f"{count / 1e9:.2f}", *(f"{count * each / 8 / GIB:.2f}" for each in bits.values())]
        for name, count in sizes.items()
    ]
    columns = ["component", "billion parameters", *(f"GiB in {name}" for name in bits)]
    return Table(f"{model.title}, as published", columns, rows)
