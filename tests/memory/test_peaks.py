"""Windows keep their own peaks although torch has only one."""

import threading

import torch
from lowtide.memory import host, peaks
from lowtide.memory.peaks import Peak, PeakWindow
from lowtide.memory.units import MIB

CPU = torch.device("cpu", 0)


def use(mb, device):
    """Allocate and free at once."""
    torch.empty(mb * MIB, dtype=torch.uint8, device=device)


def test_a_window_sees_the_peak_since_it_was_opened(accelerator):
    base = accelerator.allocated
    use(9, accelerator.device)
    window = PeakWindow(accelerator.device)
    assert window.read().allocated == base
    use(3, accelerator.device)
    assert window.read().allocated == base + 3 * MIB
    assert window.read().reserved == accelerator.peak_reserved
    assert window.close().allocated == base + 3 * MIB


def test_an_inner_window_does_not_spoil_the_outer_one(accelerator):
    base = accelerator.allocated
    outer = PeakWindow(accelerator.device)
    use(9, accelerator.device)
    inner = PeakWindow(accelerator.device)
    use(3, accelerator.device)
    assert inner.close().allocated == base + 3 * MIB
    use(1, accelerator.device)
    later = PeakWindow(accelerator.device)
    use(5, accelerator.device)
    assert later.close().allocated == base + 5 * MIB
    assert outer.close().allocated == base + 9 * MIB


def test_a_peak_within_the_inner_window_is_the_outer_ones_too(accelerator):
    base = accelerator.allocated
    outer = PeakWindow(accelerator.device)
    inner = PeakWindow(accelerator.device)
    use(7, accelerator.device)
    inner.close()
    PeakWindow(accelerator.device).close()
    assert outer.close().allocated == base + 7 * MIB


def test_a_closed_window_counts_no_more(accelerator):
    window = PeakWindow(accelerator.device)
    peak = window.close()
    use(3, accelerator.device)
    assert window.close() == window.read() == peak


def test_windows_of_two_threads_are_kept_apart(accelerator):
    base = accelerator.allocated
    mine = PeakWindow(accelerator.device)
    use(6, accelerator.device)
    found = []

    def other():
        window = PeakWindow(accelerator.device)
        use(2, accelerator.device)
        found.append(window.close().allocated)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [base + 2 * MIB]
    assert mine.close().allocated == base + 6 * MIB


def test_the_cpu_is_sampled_and_the_thread_ends(monkeypatch):
    readings = iter([100, 700])
    monkeypatch.setattr(peaks, "process_rss", lambda: next(readings, 200))
    window = PeakWindow(CPU)
    second = PeakWindow(CPU)
    sampler = peaks._samplers[CPU]
    sampler._stop.wait(10 * peaks.SAMPLE_SECONDS)
    assert window.close() == Peak(host=700)
    assert peaks._samplers[CPU] is sampler  # the second window still needs it
    second.close()
    assert CPU not in peaks._samplers
    assert not sampler._thread.is_alive()


def test_the_sample_is_the_processs_memory():
    window = PeakWindow(CPU)
    ballast = b"x" * (64 * MIB)
    peak = window.close().host
    assert peak >= host.process_rss() - 32 * MIB > len(ballast) // 2


def test_unknown_readings_give_way():
    assert Peak(None, 3, None).joined(Peak(5, 2, None)) == Peak(5, 3, None)
