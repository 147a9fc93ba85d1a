"""The playserve wire: messages, specs, codec, errors and a fake server for tests."""
