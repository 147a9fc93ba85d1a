"""Generated code of the playserve.v1 wire; see the .proto files beside it."""
