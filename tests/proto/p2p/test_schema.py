"""The schema is Open P2P's by field number and type, checked on bytes that were made by hand."""

from __future__ import annotations

import math

import p2p_bytes as raw
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from playserve.p2p import shared_pb2
from playserve.p2p import video_annotation_pb2 as pb

TYPES = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}

# "name=number:type", * repeated, |oneof. Written from the reference, not from our .proto.
SCHEMA = {
    "VideoAnnotation": "metadata=2:VideoAnnotationMetadata frame_annotations=3:*FrameAnnotation "
    "task_specific_info=4:TaskSpecificInfo video_global_task=5:VideoGlobalTask version=6:int32 "
    "video_frame_annotation_metadata=7:VideoFrameAnnotationMetadata changelog=8:*Changelog voice_events=9:*VoiceEvent",
    "VideoAnnotationMetadata": "id=1:string timestamp=2:int64 user=3:string tasks=4:*string frames_per_second=5:float "
    "env=6:VideoAnnotationEnv group_name=7:string golden_example_path=8:string video_source_info=9:VideoSourceInfo "
    "capture_device_specs=10:CaptureDeviceSpecs video_quality_info=11:VideoQualityInfo",
    "VideoAnnotationEnv": "env=1:string env_subtype=2:string env_version=3:string",
    "CaptureDeviceSpecs": "os=1:string keyboard_layout=2:string window_specs=3:WindowSpecs "
    "screen_specs=4:*ScreenSpecs recap_version=6:int32 git_commit=7:string",
    "WindowSpecs": "width=1:int32 height=2:int32 scale=3:double dpi=4:int32 title=5:string screen_id=6:int64",
    "ScreenSpecs": "width=1:int32 height=2:int32 scale=3:double dpi=4:int32 id=5:int64",
    "VideoQualityInfo": "has_facecam=1:bool aspect_ratio=2:VideoAspectRatio",
    "VideoAspectRatio": "numerator=1:int32 denominator=2:int32",
    "VideoSourceInfo": "source=1:Source video_filter_info=2:string",
    "Source": "youtube_source=1:YoutubeSource|source_type oai_source=2:OAISource|source_type "
    "twitch_source=3:TwitchSource|source_type",
    "YoutubeSource": "video_id=1:string query=2:string",
    "OAISource": "video_url=1:string action_url=2:string",
    "TwitchSource": "video_id=1:string game=2:string env_subtype=3:string",
    "FrameAnnotation": "user_action=1:LowLevelAction minecraft_state=2:MinecraftState|env_state "
    "block_chase_state=3:TwoDBlockChaseState|env_state miniworld_state=4:MiniWorldState|env_state "
    "action_task=5:ActionTask system_action=6:LowLevelAction frame_text_annotation=7:*FrameTextAnnotation "
    "frame_time=8:uint64 input_events=9:*InputEvent",
    "LowLevelAction": "mouse_deprecated=1:DeprecatedMouseAction keyboard=2:KeyboardAction is_known=3:bool "
    "mouse=4:MouseAction game_pad=5:GamePadAction",
    "KeyboardAction": "keys=1:*string",
    "MouseAction": "mouse_absolute_px=1:Vec2Int mouse_relative=2:Vec2Float mouse_delta_px=3:Vec2Int "
    "scroll_delta_px=4:Vec2Int buttons_down=9:*string",
    "DeprecatedMouseAction": "x=1:double y=2:double dx=3:double dy=4:double buttons=5:*int32 new_buttons=6:*int32",
    "GamePadAction": "buttons=1:GamePadButtons left_stick=2:Stick right_stick=3:Stick left_trigger=4:float "
    "right_trigger=5:float",
    "GamePadButtons": "south=1:bool north=2:bool east=3:bool west=4:bool dpad_up=5:bool dpad_down=6:bool "
    "dpad_left=7:bool dpad_right=8:bool start=9:bool select=10:bool left_bumper=11:bool right_bumper=12:bool",
    "Stick": "x=1:float y=2:float pressed=3:bool",
    "FrameTextAnnotation": "instruction=1:string frame_text_annotator=2:FrameTextAnnotator duration=3:float "
    "text_embedding_dict=4:*TextEmbeddingDictEntry",
    "TokenizerEmbeddingMap": "text_embeddings=1:*TextEmbeddingsEntry",
    "FloatTensor": "shape=1:*int64 values=2:*float",
    "FrameTextAnnotator": "provider=1:string version=2:string",
    "ActionTask": "lower_level_task=1:string higher_level_task=2:string",
    "InputEvent": "mouse_event=1:MouseButtonEvent|event keyboard_event=2:KeyboardEvent|event "
    "mouse_move_event=3:Vec2Int|event wheel_event=4:Vec2Int|event mouse_delta_event=5:Vec2Int|event "
    "game_pad_button_event=7:GamePadButtonEvent|event game_pad_axis_event=8:GamePadAxisEvent|event "
    "game_pad_trigger_event=9:GamePadTriggerEvent|event time=6:uint64 simulated=10:bool",
    "MouseButtonEvent": "button=1:string pressed=2:bool",
    "KeyboardEvent": "key=1:string pressed=2:bool",
    "GamePadButtonEvent": "button=1:string pressed=2:bool",
    "GamePadAxisEvent": "axis=1:string value=2:float",
    "GamePadTriggerEvent": "trigger=1:string value=2:float",
    "VoiceEvent": "time=1:uint64 speaking=2:bool",
    "Changelog": "change_id=1:string change_description=2:string timestamp=3:int64",
    "VideoGlobalTask": "video_narrative=1:string",
    "VideoFrameAnnotationMetadata": "video_narrative=1:string",
    "TaskSpecificInfo": "pathfinding_info=1:PathfindingTaskSpecificInfo|task_info",
    "PathfindingTaskSpecificInfo": "pathfinding_trajectory=1:*Point3D",
    "Point3D": "x=1:double y=2:double z=3:double",
    "MinecraftState": "xpos=1:double ypos=2:double zpos=3:double yaw=4:double pitch=5:double milli=6:int64 "
    "serverTick=7:int64",
    "TwoDBlockChaseState": "agent_pos_x=1:int32 agent_pos_y=2:int32 goal_pos_x=3:int32 goal_pos_y=4:int32",
    "MiniWorldState": "miniworld_agent_state=1:MiniWorldAgentState miniworld_env_state=2:*MiniWorldEnvState",
    "MiniWorldAgentState": "agent_pos_x=1:double agent_pos_z=2:double agent_dir_x=5:double agent_dir_z=6:double "
    "camera_dir_x=7:double camera_dir_z=8:double health=9:int64 reward=10:double",
    "MiniWorldEnvState": "goal_pos_x=1:double goal_pos_z=2:double",
}


def described(message: Descriptor) -> set[str]:
    lines = set()
    for field in message.fields:
        kind = field.message_type.name if field.message_type else TYPES[field.type]
        many = "*" if field.is_repeated else ""
        group = f"|{field.containing_oneof.name}" if field.containing_oneof else ""
        lines.add(f"{field.name}={field.number}:{many}{kind}{group}")
    return lines


def test_every_message_has_their_fields_and_no_other() -> None:
    ours = {message.name: described(message) for message in pb.DESCRIPTOR.message_types_by_name.values()}
    assert ours == {name: set(fields.split()) for name, fields in SCHEMA.items()}
    shared = {message.name: described(message) for message in shared_pb2.DESCRIPTOR.message_types_by_name.values()}
    assert shared == {"Vec2Float": {"x=1:double", "y=2:double"}, "Vec2Int": {"x=1:int32", "y=2:int32"}}
    assert pb.DESCRIPTOR.package == "elefant.training_data.video_annotation"
    assert shared_pb2.DESCRIPTOR.package == "elefant.training_data.shared"


def golden() -> bytes:
    user = raw.low_level_action(("w", "LeftShift"), ("0", "1"), (-322, 7))
    system = raw.low_level_action(("Space",), (), (0, -1))
    told = raw.text("reach the door", 12.5, extra=raw.embedding("gemini-2.5-flash", "gemma", (1, 3), [0.5, -1.0, 2.0]))
    frames = [raw.frame(user, time_ns=130_000_000, texts=(told,)), raw.frame(None, system, time_ns=180_000_000)]
    return raw.annotation(frames, env="Roblox", subtype="Hypershot")


def test_golden_bytes_parse() -> None:
    message = pb.VideoAnnotation.FromString(golden())
    assert message.version == 5
    assert message.metadata.env.env_subtype == "Hypershot"
    assert message.metadata.timestamp == 1_733_000_000_000
    first, second = message.frame_annotations
    assert list(first.user_action.keyboard.keys) == ["w", "LeftShift"]
    assert (first.user_action.mouse.mouse_delta_px.x, first.user_action.mouse.mouse_delta_px.y) == (-322, 7)
    assert list(first.user_action.mouse.buttons_down) == ["0", "1"]
    assert (first.user_action.is_known, first.system_action.is_known) == (True, False)
    assert (second.user_action.is_known, second.system_action.is_known) == (False, True)
    assert first.frame_time == 130_000_000
    (told,) = first.frame_text_annotation
    assert math.isclose(told.duration, 12.5)
    tensor = told.text_embedding_dict["gemini-2.5-flash"].text_embeddings["gemma"]
    assert (list(tensor.shape), list(tensor.values)) == ([1, 3], [0.5, -1.0, 2.0])


def test_golden_bytes_are_what_we_serialize() -> None:
    # Only canonical encodings come back the same, which the hand-made bytes are: ascending fields, packed numbers.
    assert pb.VideoAnnotation.FromString(golden()).SerializeToString(deterministic=True) == golden()


def test_fields_of_a_later_schema_survive() -> None:
    later = golden() + raw.part(4000, b"from the future")
    assert pb.VideoAnnotation.FromString(later).SerializeToString(deterministic=True) == later


@pytest.mark.parametrize("damage", [b"\x1a\xff\xff\xff\xff\x0f", b"\x0f\x0f\x0f"])
def test_damage_is_an_error(damage: bytes) -> None:
    from google.protobuf.message import DecodeError

    with pytest.raises(DecodeError):
        pb.VideoAnnotation.FromString(golden() + damage)
