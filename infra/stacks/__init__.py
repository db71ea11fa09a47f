"""The CDK stacks, one file each."""
