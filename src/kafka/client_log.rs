//! What librdkafka has to say of itself, in our log.

use rdkafka::config::RDKafkaLogLevel;

/// What it says each time of a property that the relay's promises need. It is an operator's business no more than the property is.
const EXPERIMENTAL: &str = "enable.gapless.guarantee is experimental";

/// Passes on one of its lines.
pub(crate) fn pass_on(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        // An offset that the broker no longer has is the reader's daily bread: he reads the log instead, and says so.
        _ if facility == "OFFSET" || message.contains(EXPERIMENTAL) => tracing::debug!(facility, message, "librdkafka"),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(facility, message, "librdkafka");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "librdkafka"),
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}
