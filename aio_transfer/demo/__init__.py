"""The demo: disaggregated prefill and decode over a small transformer."""
