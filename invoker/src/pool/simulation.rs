//! Random lives of a pool, with everything it promises checked after each event.
