"""The formulas of the operations: plain torch, any device, any floating-point dtype, differentiable."""
