"""Releases are made here: merge an adapter, convert, quantize, prove the result.

The work is a child's: `python -m appliance.release DIRECTORY` (see `appliance.batch`). Importing this
package loads nothing heavy.
"""
