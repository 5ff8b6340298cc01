"""What a command needs that does its work itself, beside a daemon or without one: state, device, leases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from appliance.settings import Settings

if TYPE_CHECKING:
    from appliance.hardware.lease import Ledger
    from appliance.hardware.selection import Selection
    from appliance.store.store import Store


class LocalState(NamedTuple):
    """The state directory's store, the device that was selected, and who holds its memory."""

    store: Store
    selected: Selection
    ledger: Ledger


@contextmanager
def opened(settings: Settings) -> Iterator[LocalState]:
    """Open it while the block runs; children of the command see the selected GPU alone."""
    # The database and its libraries: too slow for every other command to wait for.
    from appliance.hardware import selection
    from appliance.hardware.lease import DIRECTORY, Ledger
    from appliance.store.store import Store

    selected = selection.select(settings)
    selection.show_only_the_gpu(selected.device)
    store = Store(settings.state_dir, settings.storage_quota_bytes)
    try:
        ledger = Ledger(settings.state_dir / DIRECTORY, selected.machine.device_bytes)
        yield LocalState(store, selected, ledger)
    finally:
        store.close()
