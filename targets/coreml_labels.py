"""Class labels in a Core ML package: what makes it a classifier for Xcode's preview and for Vision, beside its logits.

coremltools' own ClassifierConfig replaces the logits, and fails (9.0) where a program has another output beside the
probabilities. So its two operations are added here to the finished program: softmax and classify.
"""

from collections.abc import Sequence
from typing import Any

LABEL, SHARES = "label", "shares"
"""outputs: the likeliest class; a dictionary of every class and its probability"""


def add(spec: Any, logits: str, labels: Sequence[str]) -> None:
    """Let a package's program give LABEL and SHARES too.

    spec: Model of coremltools' protobuf, changed in place;  logits: its output (1, C) float32;  labels: C names
    Raises ValueError for names that are not as many as the logits, or that no dictionary could tell apart.
    """
    from coremltools.proto import MIL_pb2 as MIL

    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    made = next(out for op in block.operations for out in op.outputs if out.name == logits)
    count = made.type.tensorType.dimensions[-1].constant.size
    if count != len(labels) or len(set(labels)) != count:
        raise ValueError(f"{count} logits need as many labels, all different, not {len(labels)}")

    def text(words: Sequence[str]) -> Any:
        value = MIL.Value()
        value.type.tensorType.dataType = MIL.STRING
        value.immediateValue.tensor.strings.values.extend(words)
        return value

    def operation(kind: str, name: str) -> Any:
        added = block.operations.add(type=kind)
        added.attributes["name"].CopyFrom(text([name]))
        return added

    axis = operation("const", f"{SHARES}_axis")
    axis.outputs.add(name=f"{SHARES}_axis").type.tensorType.dataType = MIL.INT32
    axis.attributes["val"].type.tensorType.dataType = MIL.INT32
    axis.attributes["val"].immediateValue.tensor.ints.values.append(-1)

    softmax = operation("softmax", f"{SHARES}_of_logits")
    softmax.inputs["x"].arguments.add(name=logits)
    softmax.inputs["axis"].arguments.add(name=f"{SHARES}_axis")
    softmax.outputs.add(name=f"{SHARES}_of_logits").type.CopyFrom(made.type)

    classify = operation("classify", "classify")
    classify.inputs["probabilities"].arguments.add(name=f"{SHARES}_of_logits")
    names = classify.inputs["classes"].arguments.add().value
    names.type.listType.type.tensorType.dataType = MIL.STRING
    names.type.listType.length.constant.size = count
    names.immediateValue.list.values.extend(text([label]) for label in labels)
    classify.outputs.add(name=LABEL).type.tensorType.dataType = MIL.STRING
    shares = classify.outputs.add(name=SHARES).type.dictionaryType
    shares.keyType.tensorType.dataType = MIL.STRING
    shares.valueType.tensorType.dataType = MIL.FLOAT64
    block.outputs.extend([LABEL, SHARES])

    described = spec.description
    label = described.output.add(name=LABEL, shortDescription="the likeliest class")
    label.type.stringType.SetInParent()
    probabilities = described.output.add(name=SHARES, shortDescription="probability of every class")
    probabilities.type.dictionaryType.stringKeyType.SetInParent()
    described.predictedFeatureName, described.predictedProbabilitiesName = LABEL, SHARES
