"""Makes the peers' accounts on the broker, as a custom resource of CloudFormation. Standard library only."""
