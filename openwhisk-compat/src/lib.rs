//! OpenWhisk's wire: messages, entities, response mapping, limits, configuration, stores.
