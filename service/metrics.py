"""The Prometheus series of one service; each service has a registry of its own."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms, named `esvit_...`, in base units."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "esvit_requests", "Answered calls", ["path", "status"], registry=self.registry
        )
        self.request_seconds = self._seconds("request", "From the first byte to the last", ["path"])
        self.refusals = Counter(
            "esvit_refusals", "Refused calls and images by cause", ["code"], registry=self.registry
        )
        self.images = Counter("esvit_images", "Images answered", registry=self.registry)
        self.skipped = Counter(
            "esvit_skipped_images",
            "Images dropped: caller gone or too late",
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "esvit_in_flight_images", "Images accepted and not answered", registry=self.registry
        )
        self.queued = Gauge(
            "esvit_queue_images",
            "Images accepted that wait for a decoder or for the engine",
            registry=self.registry,
        )
        self.in_flight_limit = Gauge(
            "esvit_in_flight_limit_images",
            "Images in flight beyond which calls are refused",
            registry=self.registry,
        )
        self.decode_queue_seconds = self._seconds(
            "decode_queue", "Accepted until taken by a decoder"
        )
        self.queue_seconds = self._seconds("queue", "Decoded until taken by the engine")
        self.decode_seconds = self._seconds("decode", "Decoding and resizing one image")
        self.inference_seconds = self._seconds("inference", "One run of the engine")
        self.encode_seconds = self._seconds("encode", "Writing one answer")
        self.batch_images = Histogram(
            "esvit_batch_images", "Images in one run", buckets=IMAGES, registry=self.registry
        )
        self.reloads = Counter(
            "esvit_reloads",
            "Model files loaded while serving: swapped in or refused",
            ["result"],
            registry=self.registry,
        )
        for result in ("swapped", "refused"):  # there from the start, so that rates have a zero
            self.reloads.labels(result)
        self.model = Gauge(
            "esvit_model_info",
            "Always 1; the labels tell what is served",
            ["model", "engine", "provider", "precision"],
            registry=self.registry,
        )

    def _seconds(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Histogram:
        """Make a histogram of seconds."""
        return Histogram(
            f"esvit_{name}_seconds", meaning, labels, buckets=SECONDS, registry=self.registry
        )
