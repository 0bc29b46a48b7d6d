"""The folder of the metric script that ``evaluate.load`` reads; see lora2.glue.metrics."""
