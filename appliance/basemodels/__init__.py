"""Base models come in here: a Hugging Face directory or one GGUF file, from outside and not trusted.

The work is a child's: `python -m appliance.basemodels DIRECTORY` (see `appliance.batch`). Importing this
package loads nothing heavy.
"""
