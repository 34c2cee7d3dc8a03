"""The fusion loss: one cross-entropy against a mixture of label and fused distribution, never holding [N, V]."""
