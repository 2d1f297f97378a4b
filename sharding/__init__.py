"""The device mesh, the rule tables and the hosts. Import as `grpo_jax.sharding`."""
