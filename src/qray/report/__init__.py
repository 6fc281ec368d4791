"""The report: what a run proves, as one HTML page, as Markdown and as pictures. Needs no Ray and no model."""
