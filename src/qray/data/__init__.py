"""From a folder of videos to streams of clips."""
