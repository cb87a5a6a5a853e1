"""Progress on the command line."""


class Bars:
    """One progress bar per stage."""

    def __init__(self) -> None:
        self.bar, self.stage = None, ""

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, stage: str, done: int, total: int, unit: str | None = None) -> None:
        """Show that ``done`` of ``total`` steps of a stage are done; a new stage gets a new bar."""
        from tqdm import tqdm

        if stage != self.stage:
            if self.bar is not None:
                self.bar.close()
            unit = unit or ("frame" if stage == "decoding" else "step")
            self.stage, self.bar = stage, tqdm(total=total, desc=stage, unit=unit)
        self.bar.update(done - self.bar.n)
