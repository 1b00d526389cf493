//! wallex on a real Apache Kafka, with Kafka's own tools as the judge.

#[path = "../certificates/mod.rs"]
mod certificates;
#[path = "../kafka/mod.rs"]
mod kafka;
#[path = "../crash/load.rs"]
mod load;
#[path = "../process/mod.rs"]
mod process;

#[path = "."]
mod on_a_real_kafka {
    mod connections;
    mod dead_letters;
    mod groups;
    mod records;
    mod relay;
    mod states;
    mod topics;
}
