//! Reading a record's headers, whoever has written them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{Headers, Message};

/// A record's headers. The client panics where a header's name is no UTF-8, which a foreign producer's may well be: such a
/// record has none that can be read.
pub(crate) fn headers_of(message: &impl Message) -> Vec<(String, Option<Vec<u8>>)> {
    let Some(headers) = message.headers() else {
        return Vec::new();
    };
    let read = || -> Vec<(String, Option<Vec<u8>>)> {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    };
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        tracing::warn!(offset = message.offset(), partition = message.partition(), "a record's headers cannot be read");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::Header;

    use super::*;

    /// What the client makes of a header whose name is not UTF-8.
    struct Unreadable;

    impl Headers for Unreadable {
        fn count(&self) -> usize {
            1
        }

        fn try_get(&self, _index: usize) -> Option<Header<'_, &[u8]>> {
            panic!("a header's name is not UTF-8")
        }
    }

    impl Message for Unreadable {
        type Headers = Unreadable;

        fn key(&self) -> Option<&[u8]> {
            Some(b"wallet-1")
        }

        fn payload(&self) -> Option<&[u8]> {
            None
        }

        #[expect(unsafe_code, reason = "the trait has it so; nothing is done in it")]
        unsafe fn payload_mut(&mut self) -> Option<&mut [u8]> {
            None
        }

        fn topic(&self) -> &str {
            "wallet-events"
        }

        fn partition(&self) -> i32 {
            0
        }

        fn offset(&self) -> i64 {
            7
        }

        fn timestamp(&self) -> Timestamp {
            Timestamp::NotAvailable
        }

        fn headers(&self) -> Option<&Unreadable> {
            Some(self)
        }
    }

    #[test]
    fn a_record_whose_headers_cannot_be_read_is_one_without_headers() {
        assert!(headers_of(&Unreadable).is_empty());
    }
}
