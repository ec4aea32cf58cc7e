"""Measures of forgetting, and of images that stand in for retained ones.

The target of a measure of forgetting is the retrained model's value.
"""

from jaxunlearn.metrics.accuracy import class_accuracy as class_accuracy
from jaxunlearn.metrics.accuracy import confusion_matrix as confusion_matrix
from jaxunlearn.metrics.accuracy import relative_change as relative_change
from jaxunlearn.metrics.attackers import EntropyMembership as EntropyMembership
from jaxunlearn.metrics.attackers import LossAttack as LossAttack
from jaxunlearn.metrics.attackers import SvcMembership as SvcMembership
from jaxunlearn.metrics.attackers import (
    entropy_logistic_membership as entropy_logistic_membership,
)
from jaxunlearn.metrics.attackers import simple_loss_attack as simple_loss_attack
from jaxunlearn.metrics.attackers import svc_membership as svc_membership
from jaxunlearn.metrics.audits import AUDITS as AUDITS
from jaxunlearn.metrics.barrier import LossBarrier as LossBarrier
from jaxunlearn.metrics.barrier import loss_barrier as loss_barrier
from jaxunlearn.metrics.boundary import Neighbourhood as Neighbourhood
from jaxunlearn.metrics.boundary import OverUnlearning as OverUnlearning
from jaxunlearn.metrics.boundary import over_unlearning as over_unlearning
from jaxunlearn.metrics.challenge import ForgettingQuality as ForgettingQuality
from jaxunlearn.metrics.challenge import (
    forgetting_quality as forgetting_quality,
)
from jaxunlearn.metrics.confusion import ClassDifficulty as ClassDifficulty
from jaxunlearn.metrics.confusion import class_confusion as class_confusion
from jaxunlearn.metrics.confusion import class_difficulties as class_difficulties
from jaxunlearn.metrics.difficulty import Difficulty as Difficulty
from jaxunlearn.metrics.difficulty import (
    classification_margins as classification_margins,
)
from jaxunlearn.metrics.difficulty import sample_difficulty as sample_difficulty
from jaxunlearn.metrics.distances import activation_distance as activation_distance
from jaxunlearn.metrics.distances import completeness as completeness
from jaxunlearn.metrics.distances import entropy as entropy
from jaxunlearn.metrics.distances import js_divergence as js_divergence
from jaxunlearn.metrics.distances import kl_divergence as kl_divergence
from jaxunlearn.metrics.distances import label_histogram as label_histogram
from jaxunlearn.metrics.distances import (
    total_variation_distance as total_variation_distance,
)
from jaxunlearn.metrics.distances import zrf as zrf
from jaxunlearn.metrics.evaluation import Evaluation as Evaluation
from jaxunlearn.metrics.evaluation import evaluate as evaluate
from jaxunlearn.metrics.forget_sets import by_confusion as by_confusion
from jaxunlearn.metrics.forget_sets import by_margin as by_margin
from jaxunlearn.metrics.gaps import (
    adaptive_unlearning_score as adaptive_unlearning_score,
)
from jaxunlearn.metrics.gaps import average_gap as average_gap
from jaxunlearn.metrics.gaps import indiscernibility as indiscernibility
from jaxunlearn.metrics.gaps import nomus as nomus
from jaxunlearn.metrics.gaps import retention as retention
from jaxunlearn.metrics.gaps import runtime_efficiency as runtime_efficiency
from jaxunlearn.metrics.gaps import sape as sape
from jaxunlearn.metrics.gaps import t_interval as t_interval
from jaxunlearn.metrics.gaps import tow as tow
from jaxunlearn.metrics.head import neutral_head as neutral_head
from jaxunlearn.metrics.layer_features import all_features as all_features
from jaxunlearn.metrics.layer_features import feature_layers as feature_layers
from jaxunlearn.metrics.layer_features import features as features
from jaxunlearn.metrics.loss_change import LossChange as LossChange
from jaxunlearn.metrics.loss_change import loss_change as loss_change
from jaxunlearn.metrics.membership import ThresholdAttack as ThresholdAttack
from jaxunlearn.metrics.membership import confidence as confidence
from jaxunlearn.metrics.membership import lira as lira
from jaxunlearn.metrics.membership import (
    logit_scaled_confidence as logit_scaled_confidence,
)
from jaxunlearn.metrics.membership import modified_entropy as modified_entropy
from jaxunlearn.metrics.membership import threshold_attack as threshold_attack
from jaxunlearn.metrics.probes import PrototypeAttack as PrototypeAttack
from jaxunlearn.metrics.probes import class_mean_predictions as class_mean_predictions
from jaxunlearn.metrics.probes import linear_probe as linear_probe
from jaxunlearn.metrics.probes import neighbour_predictions as neighbour_predictions
from jaxunlearn.metrics.probes import prototype_attack as prototype_attack
from jaxunlearn.metrics.proxies import ProxyQuality as ProxyQuality
from jaxunlearn.metrics.proxies import noise_images as noise_images
from jaxunlearn.metrics.proxies import proxy_quality as proxy_quality
from jaxunlearn.metrics.recovery import RecoveryRadius as RecoveryRadius
from jaxunlearn.metrics.recovery import recovery_radius as recovery_radius
from jaxunlearn.metrics.relearning import Relearned as Relearned
from jaxunlearn.metrics.relearning import Relearning as Relearning
from jaxunlearn.metrics.relearning import anamnesis_index as anamnesis_index
from jaxunlearn.metrics.relearning import relearn_steps as relearn_steps
from jaxunlearn.metrics.representation import captured_energy as captured_energy
from jaxunlearn.metrics.representation import principal_angles as principal_angles
from jaxunlearn.metrics.representation import subspace_overlap as subspace_overlap
from jaxunlearn.metrics.robustness import Attacked as Attacked
from jaxunlearn.metrics.robustness import fgsm as fgsm
from jaxunlearn.metrics.robustness import pgd as pgd
from jaxunlearn.metrics.shadows import ShadowEnsemble as ShadowEnsemble
from jaxunlearn.metrics.shadows import ULira as ULira
from jaxunlearn.metrics.shadows import ensemble_logits as ensemble_logits
from jaxunlearn.metrics.shadows import shadow_ensemble as shadow_ensemble
from jaxunlearn.metrics.shadows import u_lira as u_lira
from jaxunlearn.metrics.shifts import shifted_images as shifted_images
from jaxunlearn.metrics.similarity import klom as klom
from jaxunlearn.metrics.similarity import linear_cka as linear_cka
from jaxunlearn.metrics.similarity import margins as margins
from jaxunlearn.metrics.similarity import weight_distance as weight_distance
from jaxunlearn.metrics.table import METRICS as METRICS
from jaxunlearn.metrics.table import Judged as Judged
from jaxunlearn.metrics.table import Metric as Metric
from jaxunlearn.metrics.table import measure as measure
from jaxunlearn.metrics.verdict import Audit as Audit
from jaxunlearn.metrics.verdict import AuditRow as AuditRow
from jaxunlearn.metrics.verdict import audit as audit
from jaxunlearn.metrics.verdict import audit_all as audit_all

audits = AUDITS  # as `ju.audit(which=)` names them
