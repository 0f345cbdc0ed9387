"""The stamped checkpointers: LangGraph's own conformance suite, the stamp, and the stock savers' tables."""
