"""What Prometheus is told: requests, rows, tokens, batches, the queue. No text is ever part of it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from softprompt.serving.engine import Engine

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server, in a registry of their own: several servers may run in one process."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "softprompt_requests", "Requests that were answered.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "softprompt_request_seconds",
            "Seconds of a request, its whole text included.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._rows = Counter("softprompt_rows", "Rows and texts, by prompt.", ("prompt",), registry=registry)
        self._tokens = Counter(
            "softprompt_tokens", "Tokens that were read and written.", ("prompt", "kind"), registry=registry
        )
        self._batch_rows = Histogram(
            "softprompt_batch_rows", "Rows of a pass.", buckets=_ROWS, registry=registry
        )
        self._batch_prompts = Histogram(
            "softprompt_batch_prompts", "Prompts of a pass.", buckets=_ROWS, registry=registry
        )
        self._batch_seconds = Histogram(
            "softprompt_batch_seconds", "Seconds of a pass.", buckets=_SECONDS, registry=registry
        )
        for name, help_, read in (
            ("under_way", "Rows and texts that wait or run.", lambda: engine.under_way),
            ("prompts", "Prompts that are served.", lambda: len(engine.registry)),
            ("compiled_bytes", "Bytes of cached keys and values.", lambda: engine.cache.bytes),
        ):
            Gauge(f"softprompt_{name}", help_, registry=registry).set_function(read)
        engine.batches.append(self._ran)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def used(self, prompt: str, rows: int, read: int, written: int) -> None:
        """Count what a prompt was asked. `prompt` is one that is served: clients cannot make up names."""
        self._rows.labels(prompt).inc(rows)
        self._tokens.labels(prompt, "read").inc(read)
        self._tokens.labels(prompt, "written").inc(written)

    def forget(self, prompt: str) -> None:
        """Drop the counts of a prompt that was removed, so that they do not pile up."""
        self._rows.remove_by_labels({"prompt": prompt})
        self._tokens.remove_by_labels({"prompt": prompt})

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)

    def _ran(self, rows: int, prompts: int, seconds: float) -> None:
        self._batch_rows.observe(rows)
        self._batch_prompts.observe(prompts)
        self._batch_seconds.observe(seconds)
