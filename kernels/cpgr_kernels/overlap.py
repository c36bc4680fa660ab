"""What `box_iou` and `generalized_box_iou` share: arguments, backends, `out=` and the gradient."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from . import dispatch, native
from .arguments import check_boxes, check_device, from_numpy, plain
from .library import define, differentiable


class Overlap:
    """A measure of pairs of boxes as ops `<name>`, `<name>_out` and `<name>_backward`.

    `value` and `gradient` are its functions in `reference`. A measure may take one option, a float that follows
    `pairwise`: `option` is its name.
    """

    def __init__(self, name: str, value: Callable, gradient: Callable, option: str | None = None):
        self.name, self.gradient, self.options = name, gradient, 0 if option is None else 1
        dispatch.register(name, cpp=self._cpp, cuda=self._cuda, reference=lambda out, *args: _placed(value(*args), out))
        dispatch.register(f"{name}_backward", cpp=self._cpp_backward, cuda=self._cuda_backward, reference=gradient)
        options = f", float {option}" if option else ""
        boxes, backend = "Tensor boxes1, Tensor boxes2, bool pairwise" + options, "str? backend=None"
        self.backward_op = define(
            f"{name}_backward(Tensor grad, {boxes}, {backend}) -> (Tensor, Tensor)",
            self._backward,
            self._backward_fake,
        )
        self.out_op = define(f"{name}_out({boxes}, Tensor(a!) out, {backend}) -> ()", self._into, self._into_fake)
        self.op = differentiable(
            define(f"{name}({boxes}, {backend}) -> Tensor", self._fresh, self._fresh_fake),
            self._setup_context,
            self._gradient,
            tensors=2,
        )

    # -- the public function's part --------------------------------------------------------------------------------

    def __call__(self, boxes1, boxes2, pairwise: bool, out, backend: str | None, *options: float):
        """Tensors or NumPy arrays of any matching leading dimensions and types."""
        if not (isinstance(boxes1, Tensor) and isinstance(boxes2, Tensor)):
            return self._numpy(boxes1, boxes2, pairwise, out, backend, *options)
        if boxes1.dtype is not boxes2.dtype:
            common = torch.promote_types(boxes1.dtype, boxes2.dtype)
            boxes1, boxes2 = boxes1.to(common), boxes2.to(common)
        kept = 2 if pairwise else 1
        if boxes1.shape[:-kept] != boxes2.shape[:-kept]:
            boxes1, boxes2 = broadcast_leading(self.name, boxes1, boxes2, kept)
        if out is None:
            return self.op(boxes1, boxes2, bool(pairwise), *options, backend)
        if not isinstance(out, Tensor):
            raise TypeError(f"{self.name}: out must be a torch.Tensor as the boxes are, got {type(out).__name__}")
        if torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad or out.requires_grad):
            raise RuntimeError(f"{self.name}: out= has no gradient; call it under torch.no_grad() or without out=")
        with torch.no_grad():
            self.out_op(boxes1, boxes2, bool(pairwise), *options, out, backend)
        return out

    def _numpy(self, boxes1, boxes2, pairwise, out, backend, *options):
        boxes1, boxes2 = from_numpy(self.name, boxes1=boxes1, boxes2=boxes2)
        if out is None:
            return self(boxes1, boxes2, pairwise, None, backend, *options).numpy()
        if not isinstance(out, sys.modules["numpy"].ndarray):
            raise TypeError(f"{self.name}: out must be a numpy.ndarray as the boxes are, got {type(out).__name__}")
        if not (out.flags.writeable and out.flags.c_contiguous and out.dtype.isnative):
            raise ValueError(f"{self.name}: out must be writeable, C-contiguous and of native byte order")
        self(boxes1, boxes2, pairwise, torch.from_numpy(out), backend, *options)
        return out

    # -- the ops ------------------------------------------------------------------------------------------------

    def _check(self, boxes1: Tensor, boxes2: Tensor, pairwise: bool) -> torch.Size:
        """Check the arguments of the ops and return the shape of the result."""
        name = self.name
        check_boxes(name, "boxes1", boxes1)
        check_boxes(name, "boxes2", boxes2)
        if boxes1.device != boxes2.device:
            check_device(name, boxes1=boxes1, boxes2=boxes2)
        kept = 2 if pairwise else 1
        leading = boxes1.shape[:-kept]
        if boxes1.dim() < kept or boxes2.dim() < kept or leading != boxes2.shape[:-kept]:
            wanted = "[..., N, 4] and [..., M, 4]" if pairwise else "both [..., 4]"
            raise ValueError(
                f"{name}: boxes1 and boxes2 must be {wanted} with pairwise={pairwise}, "
                f"got {list(boxes1.shape)} and {list(boxes2.shape)}"
            )
        if boxes1.dtype is not boxes2.dtype:
            raise TypeError(f"{name}: boxes1 is {boxes1.dtype} and boxes2 is {boxes2.dtype}")
        return leading + (boxes1.shape[-2], boxes2.shape[-2]) if pairwise else leading

    def _split(self, rest: tuple) -> tuple[tuple, str | None]:
        """Options and backend; the dispatcher leaves a last argument out that has its default."""
        return rest[: self.options], rest[self.options] if len(rest) > self.options else None

    def _fresh(self, boxes1: Tensor, boxes2: Tensor, pairwise: bool, *rest) -> Tensor:
        options, backend = self._split(rest)
        shape = self._check(boxes1, boxes2, pairwise)
        run = dispatch.choose(self.name, boxes1.device.type, backend)
        return run(shape, plain(boxes1), plain(boxes2), pairwise, *options)

    def _fresh_fake(self, boxes1, boxes2, pairwise, *rest):
        return boxes1.new_empty(self._check(boxes1, boxes2, pairwise), dtype=computed_dtype(boxes1))

    def _into(self, boxes1: Tensor, boxes2: Tensor, pairwise: bool, *rest) -> None:
        out = rest[self.options]
        options, backend = self._split(rest[: self.options] + rest[self.options + 1 :])
        self._check_out(boxes1, boxes2, pairwise, out)
        for boxes in (boxes1, boxes2):
            if _share_memory(boxes, out):
                raise ValueError(f"{self.name}: out shares memory with the boxes")
        run = dispatch.choose(self.name, boxes1.device.type, backend)
        run(out, plain(boxes1), plain(boxes2), pairwise, *options)
        torch.autograd.graph.increment_version(out)

    def _into_fake(self, boxes1, boxes2, pairwise, *rest):
        self._check_out(boxes1, boxes2, pairwise, rest[self.options])

    def _check_out(self, boxes1: Tensor, boxes2: Tensor, pairwise: bool, out: Tensor) -> None:
        shape, dtype = self._check(boxes1, boxes2, pairwise), computed_dtype(boxes1)
        if out.shape != shape or out.dtype is not dtype or out.device != boxes1.device or not out.is_contiguous():
            raise ValueError(
                f"{self.name}: out must be {list(shape)}, {dtype}, contiguous, on {boxes1.device}; got "
                f"{list(out.shape)}, {out.dtype}, strides {list(out.stride())}, on {out.device}"
            )

    def _backward(self, grad: Tensor, boxes1: Tensor, boxes2: Tensor, pairwise: bool, *rest) -> tuple[Tensor, Tensor]:
        options, backend = self._split(rest)
        shape = self._check(boxes1, boxes2, pairwise)
        if grad.shape != shape or grad.device != boxes1.device:
            where = f"{list(shape)} on {boxes1.device}"
            raise ValueError(f"{self.name}_backward: grad must be {where}, got {list(grad.shape)} on {grad.device}")
        run = dispatch.choose(f"{self.name}_backward", boxes1.device.type, backend)
        grad = grad.to(computed_dtype(boxes1)).contiguous()
        grad1, grad2 = run(grad, plain(boxes1), plain(boxes2), pairwise, *options)
        return grad1.to(boxes1.dtype).contiguous(), grad2.to(boxes2.dtype).contiguous()

    def _backward_fake(self, grad, boxes1, boxes2, pairwise, *rest):
        return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)

    @staticmethod
    def _setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.rest = inputs[2:]

    def _gradient(self, ctx, grad):
        boxes1, boxes2 = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the reference is differentiable
            grads = self.gradient(grad, boxes1, boxes2, *ctx.rest[:-1])
        else:
            grads = self.backward_op(grad, boxes1, boxes2, *ctx.rest)
        return *grads, *(None for _ in ctx.rest)

    # -- the compiled kernels -------------------------------------------------------------------------------------

    def _run(self, module, place, out, boxes1: Tensor, boxes2: Tensor, pairwise: bool, *options) -> Tensor:
        """`out` is the tensor to write to, or the shape of a new one."""
        if not isinstance(out, Tensor):
            out = boxes1.new_empty(out)
        suffix, sizes = _sizes(boxes1, boxes2, pairwise)
        kernel = getattr(module, self.name + suffix)
        wide = boxes1.dtype is torch.float64
        kernel(wide, *options, boxes1.data_ptr(), boxes2.data_ptr(), *sizes, out.data_ptr(), *place)
        return out

    def _run_backward(self, module, place, grad: Tensor, boxes1: Tensor, boxes2: Tensor, pairwise: bool, *options):
        grad1, grad2 = torch.empty_like(boxes1), torch.empty_like(boxes2)
        suffix, sizes = _sizes(boxes1, boxes2, pairwise)
        kernel = getattr(module, f"{self.name}{suffix}_backward")
        addresses = grad.data_ptr(), boxes1.data_ptr(), boxes2.data_ptr()
        wide = boxes1.dtype is torch.float64
        kernel(wide, *options, *addresses, *sizes, grad1.data_ptr(), grad2.data_ptr(), *place)
        return grad1, grad2

    def _cpp(self, out, *args):
        fresh = not isinstance(out, Tensor)
        return self._run(native.cpu()[0], (fresh, torch.get_num_threads()), out, *args)

    def _cpp_backward(self, *args):
        return self._run_backward(native.cpu()[0], (torch.get_num_threads(),), *args)

    def _cuda(self, out, boxes1, *args):
        with torch.cuda.device(boxes1.device):
            return self._run(native.cuda()[0], native.launch_place(boxes1), out, boxes1, *args)

    def _cuda_backward(self, grad, *args):
        with torch.cuda.device(grad.device):
            return self._run_backward(native.cuda()[0], native.launch_place(grad), grad, *args)


def broadcast_leading(op: str, boxes1: Tensor, boxes2: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Expand all but the last `kept` dimensions to a common shape."""
    try:
        leading = torch.broadcast_shapes(boxes1.shape[:-kept], boxes2.shape[:-kept])
    except RuntimeError:
        raise ValueError(
            f"{op}: leading dimensions of boxes1 {list(boxes1.shape)} and boxes2 {list(boxes2.shape)} do not match"
        ) from None
    return boxes1.expand(*leading, *boxes1.shape[-kept:]), boxes2.expand(*leading, *boxes2.shape[-kept:])


def computed_dtype(boxes: Tensor) -> torch.dtype:
    """float64 stays, all else is computed in float32."""
    return torch.float64 if boxes.dtype is torch.float64 else torch.float32


def _placed(result: Tensor, out) -> Tensor:
    return out.copy_(result) if isinstance(out, Tensor) else result


def _share_memory(boxes: Tensor, out: Tensor) -> bool:
    """True if the memory of `out`, which is contiguous, reaches into that from the first to the last of the boxes."""
    if boxes.numel() == 0 or out.numel() == 0:
        return False
    last = sum((size - 1) * stride for size, stride in zip(boxes.shape, boxes.stride(), strict=True))
    begin, end = boxes.data_ptr(), boxes.data_ptr() + (last + 1) * boxes.element_size()
    return begin < out.data_ptr() + out.nbytes and out.data_ptr() < end


def _sizes(boxes1: Tensor, boxes2: Tensor, pairwise: bool) -> tuple[str, tuple[int, ...]]:
    """The suffix of the kernel's name, and the sizes it takes."""
    if not pairwise:
        return "_pairs", (boxes1.numel() // 4,)
    rows, count = boxes1.shape[-2], boxes2.shape[-2]
    return "", (boxes1.shape[:-2].numel(), rows, count)
