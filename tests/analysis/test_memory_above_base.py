"""Memory above the base's, worked out by hand."""

import pandas as pd

from blocklora_lib.analysis.memory import above_base

MIB = 2**20


def test_peaks_lie_above_the_median_of_the_bases_repeats_at_that_batch_size():
    rows = [
        *((1, "base", 10, peak) for peak in (100, 104, 102)),
        *((1, "merged_kept", 13, peak) for peak in (105, 101)),
        *((8, "base", 10, 200), (8, "merged_kept", 13, 203)),
    ]
    frame = pd.DataFrame(rows, columns=["batch", "form", "weights_bytes", "peak_bytes"])
    frame[["weights_bytes", "peak_bytes"]] *= MIB
    found = above_base(frame)
    assert found["base_peak"].tolist() == [102] * 5 + [200] * 2
    assert found["peak_above"].tolist() == [-2, 2, 0, 3, -1, 0, 3]
    assert found["weights_above"].tolist() == [0, 0, 0, 3, 3, 0, 3]
